"""Tests of bar_jax/visualize/basis.py."""

import io
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from bar_jax.bases.matrices import haar, random_orthogonal
from bar_jax.runtime.errors import InputError
from bar_jax.visualize import basis
from bar_jax.visualize.basis import LABEL
from bar_jax.visualize.grid import CELL, GAP

BLUE, ORANGE = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def _cell(picture: np.ndarray, row: int, column: int, height: int = CELL) -> np.ndarray:
    """One cell of a grid, [height, CELL, 3]."""
    y, x = GAP + row * (height + GAP), GAP + column * (CELL + GAP)
    return picture[y : y + height, x : x + CELL]


def _pixels(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def _count(png: bytes, color) -> int:
    return int(np.all(_pixels(png) == color, -1).sum())


def test_darker_is_higher():
    """Each row by itself: from its highest entry to its lowest, zero inside."""
    A = np.array(
        [[3, 1, -1, 0], [0.2, 0.2, 0.2, 0.2], [0, 5, 0, 0], [-1, -1, -1, -1], [0, 0, 0, 0]]
    )
    picture = basis.rows_picture(A, (2, 2), columns=5)
    assert picture.dtype == np.uint8
    tokens = [_cell(picture, 0, k)[:: CELL // 2, :: CELL // 2, 0].reshape(-1).tolist()
              for k in range(5)]  # fmt: skip
    assert tokens == [
        [0, 128, 255, 191],
        [0, 0, 0, 0],
        [255, 0, 255, 255],
        [255, 255, 255, 255],
        [0, 0, 0, 0],
    ]


def test_rows_stand_in_order_in_raster():
    """Row k of the identity is black at token k alone."""
    picture = basis.rows_picture(np.eye(6), (2, 3), rows=[4, 1], columns=1)
    for cell, (i, j) in enumerate([(1, 1), (0, 1)]):
        image = picture[GAP + cell * (CELL + GAP) :][:CELL, GAP : GAP + 96, 0]
        expected = np.full((2, 3), 255)
        expected[i, j] = 0
        assert_array_equal(image[::32, ::32], expected)


def test_rows_beyond_the_last_are_left_out():
    picture = basis.rows_picture(np.eye(4), (2, 2), columns=10)
    assert np.all(_cell(picture, 0, 4) == 255) and picture.shape[0] == CELL + 2 * GAP


def test_labels_stand_above_and_leave_the_rows_as_they_are():
    A = random_orthogonal(16, 0)
    plain = basis.rows_picture(A, (4, 4), rows=range(3), columns=3)
    labelled = basis.rows_picture(A, (4, 4), rows=range(3), columns=3, labels=True)
    strips = []
    for k in range(3):
        cell = _cell(labelled, 0, k, CELL + LABEL)
        assert_array_equal(cell[LABEL:], _cell(plain, 0, k))
        assert cell[:LABEL].min() < 128  # ink
        strips.append(cell[:LABEL])
    assert not np.array_equal(strips[0], strips[1])


def test_rows_need_no_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    basis.rows_picture(np.eye(4), (2, 2), labels=True)


@pytest.mark.parametrize(
    "rows, expected",
    [
        (256, [1, *range(25, 256, 25), 256]),
        (25, [1, 25]),
        (16, [1, 16]),
        (50, [1, 25, 50]),
        (1, [1]),
    ],
)
def test_prefix_counts(rows, expected):
    """Figure 9: one token, then every 25; all of them at last."""
    assert basis.prefix_counts(rows) == expected


def test_progressive_decoding_sums_the_first_rows():
    """With a basis that is not orthogonal, by an explicit sum of columns of its inverse."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((4, 4)) + 2 * np.eye(4)
    inverse = np.linalg.inv(A)
    y = rng.standard_normal((2, 4, 3))
    decode = lambda x: 10 * x.reshape(-1, 2, 2, 3)
    images = basis.progressive_decoding(y.astype(np.float32), inverse, decode, [1, 3, 4])
    assert images.shape == (3, 2, 2, 2, 3)
    for image, k in zip(images, (1, 3, 4), strict=True):
        tokens = sum(np.einsum("n,bd->bnd", inverse[:, j], y[:, j]) for j in range(k))
        assert_allclose(image, 10 * tokens.reshape(2, 2, 2, 3), atol=1e-4)


def test_progressive_decoding_of_coarse_to_fine_starts_at_the_mean():
    """Haar: one row gives the mean of the image, four the means of its quarters."""
    image = np.random.default_rng(0).standard_normal((1, 4, 4, 3)).astype(np.float32)
    A = haar((4, 4))
    y = np.einsum("kn,bnd->bkd", A, image.reshape(1, 16, 3)).astype(np.float32)
    one, four, whole = basis.progressive_decoding(
        y, A.T, lambda x: x.reshape(1, 4, 4, 3), [1, 4, 16]
    )
    assert_allclose(one, np.broadcast_to(image.mean((1, 2), keepdims=True), image.shape), atol=1e-6)
    quarters = image.reshape(1, 2, 2, 2, 2, 3).mean((2, 4)).repeat(2, 1).repeat(2, 2)
    assert_allclose(four, quarters, atol=1e-6)
    assert_allclose(whole, image, atol=1e-6)


def test_progressive_picture_has_a_row_for_each_image():
    values = np.arange(6, dtype=np.uint8).reshape(3, 2)  # [K, B]
    images = np.broadcast_to(values[:, :, None, None, None], (3, 2, CELL, CELL, 3))
    picture = basis.progressive_picture(images)
    for b in range(2):
        for k in range(3):
            assert np.all(_cell(picture, b, k) == values[k, b])


HISTORY = [(0, np.ones(8), 0.0), (100, np.linspace(0.8, 1.3, 8), 0.9), (200, np.ones(8), 0.01)]
DRAWINGS = [
    lambda: basis.draw_orthogonality(HISTORY, 0.5),
    lambda: basis.draw_prefix_energy({"learned": np.linspace(0.5, 1, 16)}, np.ones(16)),
]


@pytest.mark.parametrize("history", [HISTORY, HISTORY[:1], []], ids=["run", "start", "none"])
@pytest.mark.parametrize("delta", [None, 0.0, 0.5])
def test_orthogonality_is_drawn(history, delta):
    """Also where the norm is zero, which has no logarithm, and where nothing is logged yet."""
    assert _pixels(basis.draw_orthogonality(history, delta)).shape == (720, 1800, 3)


def test_singular_values_and_norm_are_in_the_picture():
    """The line of the median and that of the norm are blue; without a history there is no blue."""
    assert _count(basis.draw_orthogonality(HISTORY), BLUE) > 100
    assert _count(basis.draw_orthogonality([]), BLUE) == 0


def test_prefix_energies_are_in_the_picture():
    """One colour for each basis; they may have more or fewer rows than PCA, and many names."""
    curve = np.linspace(0.5, 1, 16)
    one = basis.draw_prefix_energy({"learned": curve}, np.ones(16))
    two = basis.draw_prefix_energy(
        {"learned": curve, "scales": np.linspace(0.2, 1, 21)}, np.ones(16)
    )
    assert _pixels(one).shape == (800, 1500, 3)
    assert _count(one, BLUE) > 100 and _count(one, ORANGE) == 0
    assert _count(two, BLUE) > 100 and _count(two, ORANGE) > 100
    basis.draw_prefix_energy({str(i): curve for i in range(13)}, np.ones(16))


@pytest.mark.parametrize("draw", DRAWINGS)
def test_the_same_numbers_are_the_same_picture(draw):
    assert draw() == draw()


@pytest.mark.parametrize("draw", DRAWINGS)
def test_without_matplotlib(draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r'matplotlib is not installed.*"bar_jax\[figures\]"'):
        draw()
