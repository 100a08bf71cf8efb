"""Tests of bar_jax/visualize/figures.py."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from bar_jax.runtime.errors import InputError
from bar_jax.visualize import figures
from bar_jax.visualize.figures import Point, draw_figure_4, draw_figure_6

POINTS = [
    Point("a", "reconstruction_fid", "", 4096, 1.3),
    Point("a", "sample_fid", "bit", 16, 30.0),
    Point("b", "sample_fid_guided", "masked_bit", 32, 1.9),
]
SIZES = [(draw_figure_4, (1200, 800)), (draw_figure_6, (2100, 720))]


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_papers_rfid():
    """Spot values of Table 1 and of the text of Section 3.3."""
    assert [figures.RFID_AT_BUDGET[budget] for budget in (2560, 4096, 8192, 16384, 65536)] == [
        1.25, 1.02, 0.70, 0.50, 0.33,
    ]  # fmt: skip
    assert figures.RFID_SD_VAE == 0.62


@pytest.mark.parametrize(
    "head, bits, expected",
    [
        ("linear", 10, (2.80, 1.73)),
        ("linear", 18, (3.45, 1.91)),
        ("bit", 12, (14.52, 3.24)),
        ("bit", 64, (73.67, 10.97)),
        ("masked_bit", 14, (1.71, 1.22)),
        ("masked_bit", 16, (1.68, 1.19)),
        ("masked_bit", 32, (2.37, 1.37)),
    ],
)
def test_papers_gfid(head, bits, expected):
    """Table 1, without and with guidance."""
    assert figures.GFID[head][bits] == expected


def test_the_linear_head_ends_at_18_bits():
    assert [max(figures.GFID[head]) for head in figures.HEADS] == [18, 64, 64]


@pytest.mark.parametrize("draw, size", SIZES)
@pytest.mark.parametrize("points", [[], POINTS], ids=["no run", "runs"])
def test_is_a_png_of_the_stated_size(draw, size, points):
    image = Image.open(io.BytesIO(draw(points)))
    assert (image.format, image.size) == ("PNG", size)
    image.load()


@pytest.mark.parametrize("draw", [draw_figure_4, draw_figure_6])
def test_the_same_points_are_the_same_picture(draw):
    assert draw(POINTS) == draw(POINTS)


def test_points_are_drawn_in_their_colour():
    """A filled marker of a run in Figure 4 is blue, and there is no blue without it."""
    blue = (0x00, 0x72, 0xB2)
    counts = [np.all(_pixels(draw_figure_4(p)) == blue, -1).sum() for p in ([], POINTS[:1])]
    assert counts[0] == 0 and counts[1] > 100


@pytest.mark.parametrize("fid", [1e-9, 1e6])
def test_any_positive_fid_has_a_place(fid):
    draw_figure_4([Point("a", "reconstruction_fid", "", 256, fid)])


def test_pyplot_is_not_touched():
    """It would keep every figure alive, and choose a backend for the user's own."""
    before = sys.modules.pop("matplotlib.pyplot", None)
    draw_figure_4(POINTS)
    assert "matplotlib.pyplot" not in sys.modules
    if before is not None:
        sys.modules["matplotlib.pyplot"] = before


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r'matplotlib is not installed.*"bar_jax\[figures\]"'):
        draw_figure_4([])
