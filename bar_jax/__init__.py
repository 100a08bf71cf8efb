"""bar_jax: masked-bit and basis autoregressive image generation in JAX."""

__version__ = "0.1.0"


def __getattr__(name: str):
    # `bar_jax.Pipeline` without making every `import bar_jax` pay for JAX.
    if name == "Pipeline":
        from bar_jax.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'bar_jax' has no attribute {name!r}")
