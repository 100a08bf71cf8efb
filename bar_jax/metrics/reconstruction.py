"""Reconstruction metrics, as sums over examples so that batches and processes add up."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import entr

from bar_jax.losses import Sums
from bar_jax.losses.reconstruction import to_8_bits


def psnr(images: jax.Array, reconstructions: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio of each image, in dB: 10 log10(1 / (MSE + 1e-10)).

    Args:
      images, reconstructions: [B, H, W, 3] in [-1, 1]; the reconstruction is rounded to 8 bits.

    Returns:
      [B] float32.
    """
    original = jnp.clip((images + 1) / 2, 0, 1)
    error = jnp.mean(jnp.square(original - to_8_bits(reconstructions)), axis=(1, 2, 3))
    return -10 * jnp.log10(error + 1e-10)


def reconstruction_sums(
    images: jax.Array, reconstructions: jax.Array, bits: jax.Array | None, mask: jax.Array
) -> Sums:
    """Sums for the metrics of a tokenizer over the examples that `mask` [B] marks True.

    Args:
      images, reconstructions: [B, H, W, 3] in [-1, 1].
      bits: [B, N, k] in {0, 1}; None if tokens are not made of bits.

    Returns:
      Pairs of a sum and a count: `psnr` (dB), `l1` and `l2` (mean absolute and squared error in
      [-1, 1]), and, where there are bits, `ones` [k]: how often each is one.
    """
    weight = mask.astype(jnp.float32)
    count = jnp.sum(weight)
    error = reconstructions - images
    over_pixels = lambda x: jnp.sum(weight * jnp.mean(x, axis=(1, 2, 3)))
    sums = {
        "psnr": (jnp.sum(weight * psnr(images, reconstructions)), count),
        "l1": (over_pixels(jnp.abs(error)), count),
        "l2": (over_pixels(jnp.square(error)), count),
    }
    if bits is not None:
        ones = jnp.einsum("b,bnk->k", weight, bits.astype(jnp.float32)) / bits.shape[1]
        sums["ones"] = ones, count
    return sums


def bit_entropies(ones: np.ndarray) -> np.ndarray:
    """Entropy of each bit, in bits, from how often it is one: [k] in [0, 1] -> [k]."""
    p = np.asarray(ones, np.float64)
    return (entr(p) + entr(1 - p)) / np.log(2)


def bit_statistics(ones: np.ndarray) -> dict[str, float]:
    """Usage of a tokenizer's bits from how often each is one, [k] in [0, 1].

    Returns:
      `bit_usage`: how often a bit is one, on average; `bit_entropy`, `bit_entropy_min`: mean and
      least entropy of a bit, in bits; `dead_bits`: share of bits that never change.
    """
    p, entropy = np.asarray(ones, np.float64), bit_entropies(ones)
    return {
        "bit_usage": float(np.mean(p)),
        "bit_entropy": float(np.mean(entropy)),
        "bit_entropy_min": float(np.min(entropy)),
        "dead_bits": float(np.mean((p <= 0) | (p >= 1))),
    }
