"""Reconstruction metrics, as sums over examples so that batches and processes add up."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import entr

from bar_jax.losses import Sums, perceptual
from bar_jax.losses.reconstruction import to_8_bits
from bar_jax.nn.vgg import VGG16

SSIM_WINDOW = 11  # pixels a side
SSIM_SIGMA = 1.5  # of the Gaussian that weighs them, in pixels
SSIM_CONSTANTS = (0.01**2, 0.03**2)  # of means and variances; the range of pixels is 1
LPIPS_SMALLEST = 16  # pixels a side: VGG16 halves them four times before its last stage


def psnr(images: jax.Array, reconstructions: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio of each image, in dB: 10 log10(1 / (MSE + 1e-10)).

    Args:
      images, reconstructions: [B, H, W, 3] in [-1, 1]; the reconstruction is rounded to 8 bits.

    Returns:
      [B] float32.
    """
    error = jnp.mean(
        jnp.square(_in_unit_range(images) - to_8_bits(reconstructions)), axis=(1, 2, 3)
    )
    return -10 * jnp.log10(error + 1e-10)


def ssim(images: jax.Array, reconstructions: jax.Array) -> jax.Array:
    """Structural similarity of each image (Wang et al. 2004), averaged over places and colours.

    Means, variances and the covariance are those under a Gaussian window of 11 x 11 pixels with
    sigma 1.5, at the places where it lies inside the image: borders are not padded. Pixels are in
    [0, 1]; K1 = 0.01, K2 = 0.03. Each colour is compared on its own (SSIM's paper has grey images).

    Args:
      images, reconstructions: [B, H, W, 3] in [-1, 1], H and W at least 11; the reconstruction is
        rounded to 8 bits.

    Returns:
      [B] float32, 1 for equal images.
    """
    # Variances are differences of squares, which keep more of their digits around 0.
    x, y = _in_unit_range(images) - 0.5, to_8_bits(reconstructions) - 0.5
    local = _window_means(jnp.concatenate([x, y, x * x, y * y, x * y]))
    mean_x, mean_y, xx, yy, xy = jnp.split(local, 5)
    variances = xx - mean_x**2 + yy - mean_y**2
    covariance = xy - mean_x * mean_y
    mean_x, mean_y = mean_x + 0.5, mean_y + 0.5
    c1, c2 = SSIM_CONSTANTS
    means = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return jnp.mean(means * (2 * covariance + c2) / (variances + c2), axis=(1, 2, 3))


def lpips(networks: dict, images: jax.Array, reconstructions: jax.Array) -> jax.Array:
    """LPIPS (Zhang et al. 2018, VGG16) of each image at its own size.

    Args:
      networks: parameters of `vgg16` and of the linear heads on it, `lpips`.
      images, reconstructions: [B, S, S, 3] in [-1, 1], S at least 16; the reconstruction is rounded
        to 8 bits.

    Returns:
      [B] float32, 0 for equal images.
    """
    heads = networks["lpips"]
    vgg = VGG16(tuple(heads[f"lin{i}"].shape[0] for i in range(len(heads))))
    stored = 2 * to_8_bits(reconstructions) - 1
    pair = perceptual.vgg_pair(vgg, networks["vgg16"], images, stored, images.shape[1])
    return perceptual.lpips(heads, *pair)


def reconstruction_sums(
    images: jax.Array,
    reconstructions: jax.Array,
    bits: jax.Array | None,
    mask: jax.Array,
    networks: dict | None = None,
) -> Sums:
    """Sums for the metrics of a tokenizer over the examples that `mask` [B] marks True.

    Args:
      images, reconstructions: [B, H, W, 3] in [-1, 1].
      bits: [B, N, k] in {0, 1}; None if tokens are not made of bits.
      networks: what `lpips` takes; None leaves it out.

    Returns:
      Pairs of a sum and a count: `psnr` (dB), `l1` and `l2` (mean absolute and squared error in
      [-1, 1]); `ssim`, if images are large enough for its window; `lpips`, if there are networks;
      and, where there are bits, `ones` [k]: how often each is one.
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
    if min(images.shape[1:3]) >= SSIM_WINDOW:
        sums["ssim"] = jnp.sum(weight * ssim(images, reconstructions)), count
    if networks is not None:
        sums["lpips"] = jnp.sum(weight * lpips(networks, images, reconstructions)), count
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
      least entropy of a bit, in bits; `dead_bits`: fraction of bits that never change.
    """
    p, entropy = np.asarray(ones, np.float64), bit_entropies(ones)
    return {
        "bit_usage": float(np.mean(p)),
        "bit_entropy": float(np.mean(entropy)),
        "bit_entropy_min": float(np.min(entropy)),
        "dead_bits": float(np.mean((p <= 0) | (p >= 1))),
    }


def _in_unit_range(images: jax.Array) -> jax.Array:
    """[-1, 1] -> [0, 1], clipped."""
    return jnp.clip((images + 1) / 2, 0, 1)


def _window_means(x: jax.Array) -> jax.Array:
    """Means under SSIM's window wherever it fits: [B, H, W, C] -> [B, H - 10, W - 10, C]."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    window = np.exp(-np.square(offsets / SSIM_SIGMA) / 2)
    window /= window.sum()

    def matrix(length):  # for each place of the window, the weights of all pixels in a line
        places = np.eye(length - SSIM_WINDOW + 1, length)
        return sum(weight * np.roll(places, i, 1) for i, weight in enumerate(window))

    rows, columns = (jnp.asarray(matrix(length), jnp.float32) for length in x.shape[1:3])
    # Not a convolution: XLA's with one channel per group are slow on CPU.
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision=highest)
