"""Tests of bar_jax/metrics/reconstruction.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.metrics.reconstruction import bit_statistics, psnr, reconstruction_sums


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
