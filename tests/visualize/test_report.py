"""Tests of bar_jax/visualize/report.py: one page, of what a workdir holds."""

import base64
import html.parser
import json
import re

import numpy as np
import pytest

from bar_jax.visualize.grid import save_png
from bar_jax.visualize.report import HEIGHT, PICTURES, WIDTH, curve, write_report


def places(text):
    """The points of a curve's line."""
    [line] = re.findall(r'polyline points="(.*?)"', text)
    return [tuple(map(float, point.split(","))) for point in line.split()]


def test_a_curve_spans_its_box():
    text = curve("loss", [(10, 4.0), (20, 3.0), (30, 2.0)])
    assert places(text)[:2] == [(0, 0), (WIDTH / 2, HEIGHT / 2)]
    assert places(text)[-1] == (WIDTH, HEIGHT)
    assert "loss 2 (2 to 4)" in text and "steps 10 to 30" in text


def test_decades_make_an_axis_logarithmic():
    points = [(0, 1000.0), (1, 10.0), (2, 1.0)]
    assert places(curve("loss", points))[1] == pytest.approx((WIDTH / 2, HEIGHT * 2 / 3), abs=0.1)
    assert "logarithmic" in curve("loss", points)
    assert "logarithmic" not in curve("loss", [(0, -1.0), (1, 1000.0)])


@pytest.mark.parametrize(
    "points", [[(3, 1.0)], [(3, 1.0), (4, 1.0)], [(1, 0.0), (2, float("nan"))]]
)
def test_flat_short_and_broken_curves_are_drawn(points):
    assert all(np.isfinite(places(curve("x", points))).ravel())


def test_a_curve_without_a_number_says_so():
    assert "x: not finite" in curve("x", [(1, float("nan"))])


def test_many_points_are_thinned_and_the_last_one_stays():
    drawn = places(curve("x", [(i, float(i)) for i in range(10_000)]))
    assert len(drawn) < 500
    assert drawn[-1] == (WIDTH, 0)


@pytest.fixture
def run(tmp_path):
    """A workdir of two stages, with pictures."""
    lines = [
        {"stage": stage, "step": step, "loss": 1 / step, "<rate>": 2.0}
        for stage in ("train_tokenizer", "train_generator")
        for step in (1, 2, 3)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "config.json").write_text('{"job": "<script>"}')
    (tmp_path / "summary.json").write_text('{"sample_fid": 1.5}')
    (tmp_path / "classes.json").write_text('{"0": "2", "1": "<10>"}')
    (tmp_path / "pictures").mkdir()
    for step in range(20):
        picture = np.full((4, 4, 3), step, np.uint8)
        save_png(tmp_path / f"pictures/train_generator-samples-{step:08}.png", picture)
    return tmp_path


class Page(html.parser.HTMLParser):
    """The tags of a page, and where it asks for more."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]


def test_the_page_holds_all_and_asks_for_nothing(run):
    text = write_report(run).read_text()
    page = Page(text)
    assert page.tags.count("svg") == 4
    assert "script" not in page.tags and "&lt;rate&gt;" in text
    assert "<td>sample_fid</td><td>1.5</td>" in text
    assert "<td>1</td><td>&lt;10&gt;</td>" in text  # class 1
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)


def test_pictures_are_spread_over_the_run_from_first_to_last(run):
    page = Page(write_report(run).read_text())
    assert len(page.sources) == PICTURES
    embedded = [base64.b64decode(source.partition(",")[2]) for source in page.sources]
    for step, data in ((0, embedded[0]), (19, embedded[-1])):
        path = run / f"pictures/train_generator-samples-{step:08}.png"
        assert data == path.read_bytes()


def test_an_empty_workdir_has_a_report(tmp_path):
    assert "<h1>" in write_report(tmp_path).read_text()


def test_what_is_to_be_known_of_a_number_stands_beside_it(run):
    notes = {"sample_fid_note": "of <3>", "train_generator_loss_note": "of few"}
    (run / "summary.json").write_text(json.dumps({"sample_fid": 20.0, **notes}))
    text = write_report(run).read_text()
    assert "<td>sample_fid</td><td>20.0</td><td>of &lt;3&gt;</td>" in text
    begin = text.index("<h2>train_generator")
    assert "of few" in text[begin:] and "of few" not in text[:begin]
    assert "_note" not in text
