"""What a sampler is compiled for."""

from typing import NamedTuple

from ml_collections import ConfigDict

from bar_jax.config import basis_inside, real_valued
from bar_jax.nn import decode_attention
from bar_jax.nn.decoding import Weights


class Settings(NamedTuple):
    """The part of `config.sample` that makes another program; hashable.

    Attributes:
      guided: whether there is an unconditional branch.
      unmasking_schedule: of the masked-bit head.
      order: of bit tokens, `basis` | `random`.
      sampler: of xAR, `euler_maruyama` | `euler`.
      steps: of xAR in each cell, or of the diffusion head.
      clip: of the diffusion head, see `heads.gaussian_diffusion.moments`.
      iterations: of MAR.
      tokens: of basis tokens, how many are written; 0: all.
      attention: over the KV cache, of `nn.decode_attention.KINDS`.
      weights: what layers' kernels are kept as, see `nn.decoding`.
    """

    guided: bool
    unmasking_schedule: tuple[int, ...] = ()
    order: str = "basis"
    sampler: str = "euler_maruyama"
    steps: int = 50
    iterations: int = 64
    clip: float = 0.0
    tokens: int = 0
    attention: str = "xla"
    weights: Weights = "float32"


def sampling_settings(config: ConfigDict, platform: str | None = None) -> Settings:
    """The settings of `config.sample`.

    Args:
      platform: of the devices, cpu | gpu | tpu; None: of those present.

    Raises:
      InputError: `sample.attention` cannot be had on them.
    """
    section = config.sample
    return Settings(
        guided=section.guidance_scale > 1,
        unmasking_schedule=tuple(section.unmasking_schedule),
        order=section.order,
        sampler=section.sampler,
        steps=section.steps,
        iterations=section.iterations,
        clip=section.clip,
        tokens=section.tokens,
        attention=_attention(config, platform),
        weights=section.weights,
    )


def sampling_fields(config: ConfigDict) -> tuple[str, ...]:
    """The fields of `config.sample` that say in which steps the configured generator writes."""
    if real_valued(config):
        fields = {"xar": ("sampler", "steps"), "mar": ("iterations", "steps", "clip")}
        return fields.get(config.model.generator.kind, ("steps", "clip"))
    fields = ("unmasking_schedule",) if config.model.head.kind == "masked_bit" else ()
    return fields + (("tokens",) if basis_inside(config) else ("order",))


def _attention(config: ConfigDict, platform: str | None) -> str:
    """Who computes attention over the KV cache."""
    generator = config.model.generator
    if generator.kind == "mar":  # has no cache
        return "xla"
    return decode_attention.choose(
        config.sample.attention,
        config.sample.dtype,
        generator.width // generator.heads,
        queries=generator.cell_size**2 if generator.kind == "xar" else 1,
        platform=platform,
    )
