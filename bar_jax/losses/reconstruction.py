"""Pixel and feature losses of a tokenizer (masked-bit paper, Table 6), and images as stored."""

import jax
import jax.numpy as jnp


def to_8_bits(images: jax.Array) -> jax.Array:
    """[-1, 1] -> [0, 1], clipped and rounded to the 256 values of a stored image."""
    return jnp.round(jnp.clip((images + 1) / 2, 0, 1) * 255) / 255


def absolute_error(images: jax.Array, reconstructions: jax.Array) -> jax.Array:
    """Mean absolute error of each example: [B, ...] -> [B] float32."""
    error = _difference(images, reconstructions)
    # JAX's abs has the gradient 1 at 0: a pixel that is right would be pushed off.
    sign = jax.lax.stop_gradient(jnp.sign(error))
    return jnp.mean(sign * error, axis=range(1, images.ndim))


def squared_error(targets: jax.Array, predictions: jax.Array) -> jax.Array:
    """Mean squared error of each example: [B, ...] -> [B] float32; of pixels or of features."""
    return jnp.mean(jnp.square(_difference(targets, predictions)), axis=range(1, targets.ndim))


def _difference(a: jax.Array, b: jax.Array) -> jax.Array:
    return b.astype(jnp.float32) - a.astype(jnp.float32)
