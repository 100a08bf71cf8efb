"""Tests of bar_jax/nn/resize.py: parity with PyTorch and Pillow, and what can be told by hand."""

import numpy as np
import pytest
from PIL import Image

from bar_jax.nn.resize import WEIGHTS, bicubic_weights, resize

# Ours -> the arguments of torch's interpolate.
MODES = {
    "bilinear": {"mode": "bilinear", "align_corners": False},
    "bicubic_antialiased": {"mode": "bicubic", "align_corners": False, "antialias": True},
    "bicubic": {"mode": "bicubic", "align_corners": False},
    "area": {"mode": "area"},
}


SIZES = [5, 7, 12, 20, (7, 20)]  # a square's side, or rows and columns


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(2, 9, 12, 3)).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES)
def test_matches_torch(images, mode, size):
    torch = pytest.importorskip("torch")
    given = torch.from_numpy(images.transpose(0, 3, 1, 2))
    expected = torch.nn.functional.interpolate(given, size=size, **MODES[mode])
    found = np.asarray(resize(images, size, mode)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_area_is_the_mean_of_the_pixels_touched():
    """Five pixels to two: each takes two and a half, so three, the middle one with both."""
    row = np.asarray([1, 2, 6, 10, 20], np.float32)
    images = np.broadcast_to(row[None, None, :, None], (1, 5, 5, 1))
    np.testing.assert_allclose(resize(images, 2, "area")[0, 0, :, 0], [3, 12], rtol=1e-6)


@pytest.mark.parametrize("mode", MODES | WEIGHTS)
def test_the_same_size_changes_nothing(images, mode):
    square = np.round(np.abs(images[:, :, :9]) * 50)
    np.testing.assert_allclose(resize(square, 9, mode), square, atol=1e-4)


@pytest.mark.parametrize(
    "size, expected", [(2, [1, 6]), (8, [1, 1.5, 2, 4, 6, 8, 10, 10]), (3, [1, 10 / 3, 26 / 3])]
)
def test_bilinear_of_tensorflow_1(size, expected):
    """Output i lies at 4 i / size, between the pixels there; after the last pixel it repeats."""
    row = np.asarray([1, 2, 6, 10], np.float32)
    for axis in (1, 2):  # the other has one pixel
        images = row.reshape(1, 4, 1, 1) if axis == 1 else row.reshape(1, 1, 4, 1)
        found = resize(images, (size, 1) if axis == 1 else (1, size), "bilinear_tf1")
        np.testing.assert_allclose(np.ravel(found), expected, rtol=1e-6)


def test_bilinear_of_tensorflow_1_matches_a_loop(images):
    found = np.asarray(resize(images, (20, 7), "bilinear_tf1"))
    for i, j in np.ndindex(20, 7):
        y, x = i * 9 / 20, j * 12 / 7
        top, left = int(y), int(x)
        bottom, right = min(top + 1, 8), min(left + 1, 11)
        upper = images[:, top, left] * (1 - x % 1) + images[:, top, right] * (x % 1)
        lower = images[:, bottom, left] * (1 - x % 1) + images[:, bottom, right] * (x % 1)
        np.testing.assert_allclose(found[:, i, j], upper * (1 - y % 1) + lower * (y % 1), atol=1e-5)


@pytest.mark.parametrize("content", ["noise", "black and white", "smooth"])
@pytest.mark.parametrize("given, size", [(8, 28), (64, 28), (50, 40), (33, 56)])
def test_bicubic_8bit_matches_pillow(content, given, size):
    """Where the original is smooth or has few values, many results lie halfway between two."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (given, given, 3)).astype(np.uint8)
    if content == "black and white":
        image = np.where(image > 127, 255, 0).astype(np.uint8)
    elif content == "smooth":
        image = np.asarray(Image.fromarray(image[:3, :3]).resize((given, given), Image.BICUBIC))
    expected = np.asarray(Image.fromarray(image).resize((size, size), Image.BICUBIC), np.float32)
    error = np.abs(np.asarray(resize(image[None], size, "bicubic_8bit"))[0] - expected)
    assert error.max() <= 1 and np.mean(error > 0) < 1e-2


def test_bicubic_with_a_step_of_its_own():
    """As torch's interpolate does when it is given a factor, and not a size."""
    torch = pytest.importorskip("torch")
    row = np.random.default_rng(0).normal(size=(1, 1, 1, 9))
    factor = (4 + 0.1) / 9
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(row), scale_factor=(1, factor), mode="bicubic"
    )
    found = bicubic_weights(9, 4, 1 / factor) @ row[0, 0, 0]
    np.testing.assert_allclose(found, expected[0, 0, 0], atol=1e-12)
