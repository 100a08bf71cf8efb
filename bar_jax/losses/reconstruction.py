"""Pixel losses of a tokenizer (masked-bit paper, Table 6), and images as they are stored."""

import jax
import jax.numpy as jnp

from bar_jax.losses import Sums


def to_8_bits(images: jax.Array) -> jax.Array:
    """[-1, 1] -> [0, 1], clipped and rounded to the 256 values of a stored image."""
    return jnp.round(jnp.clip((images + 1) / 2, 0, 1) * 255) / 255


def reconstruction(images: jax.Array, reconstructions: jax.Array, l1: float, l2: float) -> Sums:
    """Weighted mean absolute and squared error.

    Args:
      images, reconstructions: [B, H, W, 3] float32, range [-1, 1].
      l1, l2: weights of the terms.

    Returns:
      Pairs of a sum over examples and their number: `loss` (the weighted total) and the terms
      alone, `l1` and `l2`.
    """
    count = jnp.asarray(images.shape[0], jnp.float32)
    error = reconstructions.astype(jnp.float32) - images
    # JAX's abs has the gradient 1 at 0: a pixel that is right would be pushed off.
    sign = jax.lax.stop_gradient(jnp.sign(error))
    absolute = jnp.sum(jnp.mean(sign * error, axis=(1, 2, 3)))
    squared = jnp.sum(jnp.mean(jnp.square(error), axis=(1, 2, 3)))
    return {
        "loss": (l1 * absolute + l2 * squared, count),
        "l1": (absolute, count),
        "l2": (squared, count),
    }
