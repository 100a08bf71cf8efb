"""Tests of bar_jax/nn/resize.py: parity with PyTorch, and what can be told by hand."""

import numpy as np
import pytest

from bar_jax.nn.resize import resize

# Ours -> the arguments of torch's interpolate.
MODES = {
    "bilinear": {"mode": "bilinear", "align_corners": False},
    "bicubic_antialiased": {"mode": "bicubic", "align_corners": False, "antialias": True},
    "bicubic": {"mode": "bicubic", "align_corners": False},
    "area": {"mode": "area"},
}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(2, 9, 12, 3)).astype(np.float32)


@pytest.mark.parametrize("size", [5, 7, 12, 20])
@pytest.mark.parametrize("mode", MODES)
def test_matches_torch(images, mode, size):
    torch = pytest.importorskip("torch")
    given = torch.from_numpy(images.transpose(0, 3, 1, 2))
    expected = torch.nn.functional.interpolate(given, size=(size, size), **MODES[mode])
    found = np.asarray(resize(images, size, mode)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_area_is_the_mean_of_the_pixels_touched():
    """Five pixels to two: each takes two and a half, so three, the middle one with both."""
    row = np.asarray([1, 2, 6, 10, 20], np.float32)
    images = np.broadcast_to(row[None, None, :, None], (1, 5, 5, 1))
    np.testing.assert_allclose(resize(images, 2, "area")[0, 0, :, 0], [3, 12], rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_the_same_size_changes_nothing(images, mode):
    square = images[:, :, :9]
    np.testing.assert_allclose(resize(square, 9, mode), square, atol=1e-6)
