"""Tests of bar_jax/metrics/geneval.py, by detections made by hand."""

import json

import pytest

from bar_jax.metrics.geneval import (
    Detection,
    image_name,
    is_right,
    read_detections,
    read_prompts,
    relations,
    scores,
)
from bar_jax.runtime.errors import InputError


def at(name, x, y, score=0.95, color="", side=10):
    """A square with its centre there."""
    return Detection(name, (x - side / 2, y - side / 2, x + side / 2, y + side / 2), score, color)


def prompt(tag, *include, exclude=()):
    return {"tag": tag, "prompt": "", "include": list(include), "exclude": list(exclude)}


BENCH = {"class": "bench", "count": 1}
THREE = prompt("counting", {"class": "cat", "count": 3}, exclude=[{"class": "cat", "count": 4}])
RED = prompt("colors", {"class": "bench", "count": 1, "color": "red"})
LEFT = prompt("position", BENCH, {"class": "cat", "count": 1, "position": ["left of", 0]})


@pytest.mark.parametrize(
    ("asked", "detections", "right"),
    [
        (prompt("single_object", BENCH), [at("bench", 0, 0)], True),
        (prompt("single_object", BENCH), [at("cat", 0, 0)], False),
        (prompt("single_object", BENCH), [at("bench", 0, 0, 0.31)], True),
        (prompt("single_object", BENCH), [at("bench", 0, 0, 0.3)], False),
        (THREE, [at("cat", i, 0) for i in range(3)], True),
        (THREE, [at("cat", i, 0) for i in range(2)], False),
        (THREE, [at("cat", i, 0) for i in range(4)], False),
        (THREE, [*(at("cat", i, 0) for i in range(3)), at("cat", 9, 0, 0.89)], True),
        (RED, [at("bench", 0, 0, color="red")], True),
        (RED, [at("bench", 0, 0, color="blue")], False),
        # The surest one is asked, another of the right colour is no help.
        (RED, [at("bench", 0, 0, 0.9, "blue"), at("bench", 9, 0, 0.8, "red")], False),
        (LEFT, [at("bench", 50, 0), at("cat", 0, 0)], True),
        (LEFT, [at("bench", 0, 0), at("cat", 50, 0)], False),
        (LEFT, [at("cat", 0, 0)], False),
    ],
)
def test_an_image_is_right(asked, detections, right):
    assert is_right(asked, detections) == right


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (-30, 0, {"left of"}),
        (30, 0, {"right of"}),
        (0, -30, {"above"}),
        (0, 30, {"below"}),
        (30, 30, {"right of", "below"}),
        (30, 3, {"right of"}),
        (2, 0, set()),  # a tenth of both sizes
        (4, 0, set()),  # 2 of 4: no more than half
        (4.1, 0, {"right of"}),
    ],
)
def test_relations(x, y, expected):
    assert relations(at("a", x, y), at("b", 0, 0)) == expected


def test_the_score_is_the_mean_over_tags_of_the_share_of_images():
    prompts = [prompt("a"), prompt("a"), prompt("b")]
    found = scores(prompts, [[True, True], [False, True], [False, False]])
    assert found == {"geneval": 0.375, "geneval_a": 0.75, "geneval_b": 0.0}


def test_names_are_those_of_the_published_evaluator():
    assert image_name(7, 3) == "00007/samples/0003.png"


def test_prompts_and_detections_are_read(tmp_path):
    (tmp_path / "prompts.jsonl").write_text(json.dumps(RED))
    assert read_prompts(tmp_path / "prompts.jsonl") == [RED]
    found = {"class": "bench", "box": [0, 1, 2, 3], "score": 0.5}
    (tmp_path / "found.json").write_text(json.dumps({"a.png": [found, found | {"color": "red"}]}))
    bench = Detection("bench", (0, 1, 2, 3), 0.5)
    expected = {"a.png": [bench, bench._replace(color="red")]}
    assert read_detections(tmp_path / "found.json") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no prompts"),
        ("{", "x:1: found no prompt"),
        ('{"tag": "a"}', "x:1: found no prompt, expected"),
        ('{"tag": "a", "prompt": "", "include": [{"class": "x"}]}', "x:1: found no count"),
    ],
)
def test_other_prompts_are_refused(tmp_path, text, message):
    (tmp_path / "x").write_text(text)
    with pytest.raises(InputError) as error:
        read_prompts(tmp_path / "x")
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", '{"a": [{}]}', '{"a": [{"class": 1, "box": [1]}]}'])
def test_other_detections_are_refused(tmp_path, text):
    (tmp_path / "x").write_text(text)
    with pytest.raises(InputError, match="other JSON"):
        read_detections(tmp_path / "x")
