"""Tests of bar_jax/visualize/grid.py."""

import numpy as np
import pytest
from PIL import Image

from bar_jax.visualize import grid
from bar_jax.visualize.grid import CELL, GAP, image_grid, save_png


def _flat(*values, size=CELL):
    """Images of one value each, uint8 [B, size, size, 3]."""
    return np.asarray(values, np.uint8)[:, None, None, None] * np.ones((1, size, size, 3), np.uint8)


def test_cells_stand_in_rows_with_gaps():
    """Three images in two columns; what is not an image is white."""
    picture = image_grid(_flat(10, 20, 30), columns=2)
    expected = np.full((2 * (CELL + GAP) + GAP, 2 * (CELL + GAP) + GAP, 3), 255, np.uint8)
    near, far = slice(GAP, GAP + CELL), slice(2 * GAP + CELL, 2 * GAP + 2 * CELL)
    expected[near, near], expected[near, far], expected[far, near] = 10, 20, 30
    np.testing.assert_array_equal(picture, expected)


@pytest.mark.parametrize("size, cell", [(8, 64), (16, 64), (24, 72), (64, 64), (100, 100)])
def test_small_images_are_enlarged_by_a_whole_factor(size, cell):
    picture = image_grid(_flat(0, size=size), columns=1)
    assert picture.shape == (cell + 2 * GAP, cell + 2 * GAP, 3)


def test_enlarging_repeats_pixels():
    image = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(1, 2, 2, 3)
    inside = image_grid(image, columns=1)[GAP:-GAP, GAP:-GAP]
    np.testing.assert_array_equal(inside[:: CELL // 2, :: CELL // 2], image[0])


def test_png_holds_the_picture(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    save_png(tmp_path / "picture.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "picture.png")), picture)


def test_png_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    """The file appears through `write_atomically`: what is encoded badly leaves the old one."""
    path = tmp_path / "picture.png"
    save_png(path, np.zeros((2, 2, 3), np.uint8))
    before = path.read_bytes()

    def fail(path, data):
        raise OSError("disk full")

    monkeypatch.setattr(grid, "write_atomically", fail)
    with pytest.raises(OSError, match="disk full"):
        save_png(path, np.ones((2, 2, 3), np.uint8))
    assert path.read_bytes() == before
