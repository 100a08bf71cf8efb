"""Tests of bar_jax/metrics/reconstruction.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from scipy.signal import correlate2d

from bar_jax.losses.perceptual import LinearHeads
from bar_jax.metrics.reconstruction import (
    SSIM_WINDOW,
    bit_statistics,
    lpips,
    psnr,
    reconstruction_sums,
    ssim,
)
from bar_jax.nn.vgg import VGG16


@pytest.fixture
def images():
    """Images of 8 bits and slightly wrong reconstructions, some out of range: [3, 4, 4, 3]."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 4, 4, 3)) / 127.5 - 1
    return images, images + 0.1 * rng.normal(size=images.shape)


def _psnr(image, other):
    """PSNR of one image, by hand in float64: the reconstruction as it would be stored."""
    stored = np.rint(np.clip((other + 1) / 2, 0, 1) * 255).astype(np.uint8)
    error = np.mean(((image + 1) / 2 - stored / 255) ** 2)
    return 10 * np.log10(1 / (error + 1e-10))


def test_psnr_by_hand(images):
    expected = [_psnr(*pair) for pair in zip(*images, strict=True)]
    np.testing.assert_allclose(psnr(*map(jnp.asarray, images)), expected, rtol=1e-5)


def test_psnr_of_equal_images_is_100():
    same = jnp.zeros((1, 2, 2, 3)) + 1
    np.testing.assert_allclose(psnr(same, same), [100.0], rtol=1e-6)


def test_psnr_rounds_the_reconstruction_to_8_bits():
    """A third of a level away from a stored value is no error at all."""
    image = jnp.full((1, 2, 2, 3), 100 / 127.5 - 1)
    np.testing.assert_allclose(psnr(image, image + 1 / 3 / 127.5), psnr(image, image))


def _stored(image):
    """A reconstruction in [-1, 1] as it would be read from a file, in [0, 1] float64."""
    return np.rint(np.clip((np.asarray(image, np.float64) + 1) / 2, 0, 1) * 255) / 255


def _ssim(image, other):
    """SSIM of one image, in float64: a two-dimensional window, colour by colour."""
    offsets = np.arange(SSIM_WINDOW) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    mean = lambda x: correlate2d(x, window, mode="valid")
    values = []
    for x, y in zip(
        ((image + 1) / 2).transpose(2, 0, 1), _stored(other).transpose(2, 0, 1), strict=True
    ):
        mx, my = mean(x), mean(y)
        vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
        values.append(
            (2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
        )
    return np.mean(values)


@pytest.fixture
def wide_images():
    """Like `images`, the last one flat in its middle: [3, 19, 13, 3]."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 19, 13, 3)) / 127.5 - 1
    images[2, 2:17, 1:12] = 0.8
    return images, images + 0.1 * rng.normal(size=images.shape)


def test_ssim_in_float64(wide_images):
    expected = [_ssim(*pair) for pair in zip(*wide_images, strict=True)]
    assert max(expected) < 0.99
    np.testing.assert_allclose(ssim(*map(jnp.asarray, wide_images)), expected, rtol=1e-5)


def test_ssim_of_flat_images_by_hand():
    """There is no variance: 2 x y + C1 over x^2 + y^2 + C1, of 0.2 and 0.6."""
    flat = lambda value: jnp.full((1, 12, 12, 3), 2 * value - 1)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    np.testing.assert_allclose(ssim(flat(0.2), flat(0.6)), [expected], rtol=1e-4)


def test_ssim_of_equal_images_is_1(wide_images):
    images = jnp.asarray(wide_images[0])
    np.testing.assert_allclose(ssim(images, images), 1, rtol=1e-5)


def test_ssim_of_one_window_needs_11_pixels():
    images = jnp.zeros((1, 11, 11, 3))
    mask = jnp.asarray([True])
    assert "ssim" in reconstruction_sums(images, images, None, mask)
    assert "ssim" not in reconstruction_sums(images[:, 1:], images[:, 1:], None, mask)


@pytest.fixture(scope="module")
def networks():
    """A tiny VGG16 and linear heads, random."""
    channels = (2, 3, 4, 5, 6)
    features = [jnp.zeros((1, 1, 1, c)) for c in channels]
    inits = {
        "vgg16": lambda key: VGG16(channels).init(key, jnp.zeros((1, 16, 16, 3))),
        "lpips": lambda key: LinearHeads(channels).init(key, features, features),
    }
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(np.abs(rng.normal(size=leaf.shape)), jnp.float32)
    return {
        name: jax.tree.map(draw, meta.unbox(jax.eval_shape(init, jax.random.key(0)))["params"])
        for name, init in inits.items()
    }


def test_lpips_rounds_the_reconstruction_to_8_bits(networks):
    """And clips it: what is a third of a level away from what is stored is at no distance."""
    image = jnp.full((1, 16, 16, 3), 100 / 127.5 - 1).at[:, :, ::2].set(1.0)
    distance = jax.jit(lpips)
    np.testing.assert_allclose(distance(networks, image, image + 1 / 3 / 127.5), [0.0], atol=1e-9)
    assert distance(networks, image, image + 2 / 127.5)[0] > 1e-7


def test_lpips_is_summed_where_there_are_networks(networks):
    rng = np.random.default_rng(0)
    images, decoded = (jnp.asarray(rng.uniform(-1, 1, (3, 16, 16, 3))) for _ in range(2))
    mask = jnp.asarray([True, False, True])
    total, count = jax.jit(reconstruction_sums)(images, decoded, None, mask, networks)["lpips"]
    each = jax.jit(lpips)(networks, images, decoded)
    np.testing.assert_allclose((total, count), (each[0] + each[2], 2), rtol=1e-5)
    assert "lpips" not in reconstruction_sums(images, decoded, None, mask)


def test_sums_count_masked_examples_only(images):
    originals, decoded = images
    bits = np.random.default_rng(1).integers(0, 2, (3, 4, 5)).astype(np.uint8)
    kept = [0, 2]
    sums = reconstruction_sums(
        *map(jnp.asarray, (originals, decoded, bits)), jnp.asarray([True, False, True])
    )
    error = decoded[kept] - originals[kept]
    expected = {
        "psnr": (sum(_psnr(originals[i], decoded[i]) for i in kept), 2),
        "l1": (np.abs(error).mean(axis=(1, 2, 3)).sum(), 2),
        "l2": (np.square(error).mean(axis=(1, 2, 3)).sum(), 2),
        "ones": (bits[kept].mean(axis=1).sum(axis=0), 2),
    }
    for name, pair in expected.items():
        np.testing.assert_allclose(sums[name][0], pair[0], rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(sums[name][1], pair[1], err_msg=name)


def test_bit_statistics_by_hand():
    """Entropies of p = 0, 1/2, 1/4, 1 are 0, 1, 2 - 3/4 log2 3 and 0 bits; two of four are dead."""
    statistics = bit_statistics(np.asarray([0.0, 0.5, 0.25, 1.0]))
    entropy = (1 + 2 - 0.75 * np.log2(3)) / 4
    expected = {"bit_usage": 1.75 / 4, "bit_entropy": entropy, "bit_entropy_min": 0.0}
    assert statistics == pytest.approx(expected | {"dead_bits": 0.5})
