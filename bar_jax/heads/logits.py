"""What the heads share: cross-entropy of bits and Gumbel noise."""

import jax
import jax.numpy as jnp


def gumbel(uniform: jax.Array) -> jax.Array:
    """Gumbel noise of uniform draws, clipped as in the published sampler."""
    floor = 1e-20
    return -jnp.log(jnp.maximum(-jnp.log(jnp.maximum(uniform, floor)), floor))


def bit_cross_entropy(logits: jax.Array, bits: jax.Array) -> jax.Array:
    """Cross-entropy (nats) of each bit: logits [..., n, 2], bits [..., n] -> [..., n]."""
    # log-sum-exp of two numbers minus one of them.
    sign = 2.0 * bits.astype(jnp.float32) - 1
    return jax.nn.softplus(-sign * (logits[..., 1] - logits[..., 0]))
