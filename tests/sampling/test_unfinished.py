"""Tests of bar_jax/sampling/unfinished.py: sets of images that are drawn bit by bit."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from bar_jax.sampling.unfinished import Unfinished

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 2, 2, 3), np.uint8)
LABELS = np.arange(7)
SETTINGS = {"guidance_scale": 2.0, "steps": 3}


@pytest.fixture
def opened(tmp_path):
    """Opens a set of seven images with given settings."""
    config = ConfigDict({"workdir": str(tmp_path)})
    return lambda **changes: Unfinished(config, SETTINGS | changes, len(IMAGES))


def test_what_was_drawn_is_there_for_the_next_process(opened):
    opened().append(IMAGES[:3])
    again = opened()
    assert again.count == 3
    np.testing.assert_array_equal(again.images[:3], IMAGES[:3])


def test_images_past_the_end_only_fill_up_a_batch(opened):
    kept = opened()
    for start in (0, 4):
        kept.append(np.concatenate([IMAGES[start : start + 4], IMAGES[:1]])[:4])
    assert kept.count == 7
    np.testing.assert_array_equal(kept.images, IMAGES)


def test_other_settings_have_a_set_of_their_own(opened):
    opened().append(IMAGES[:3])
    assert opened(steps=4).count == 0
    assert opened().count == 3


def test_images_that_were_not_counted_are_drawn_anew(opened, tmp_path):
    """A process that ends between the images and their count."""
    opened().append(IMAGES[:3])
    [count] = tmp_path.glob("*/count.json")
    before = count.read_text()
    opened().append(IMAGES[3:5])
    count.write_text(before)
    assert opened().count == 3


@pytest.mark.parametrize("file", ["images.npy", "count.json"])
def test_a_damaged_file_is_named_and_all_is_drawn_anew(opened, tmp_path, caplog, file):
    opened().append(IMAGES[:3])
    [path] = tmp_path.glob(f"*/{file}")
    path.write_bytes(path.read_bytes()[:3])
    assert opened().count == 0
    assert f"{path.parent} is damaged" in caplog.text


def test_a_finished_set_is_one_file(opened, tmp_path):
    kept = opened()
    kept.append(IMAGES)
    kept.finish(tmp_path / "samples.npz", LABELS, SETTINGS)
    with np.load(tmp_path / "samples.npz") as stored:
        np.testing.assert_array_equal(stored["arr_0"], IMAGES)
        np.testing.assert_array_equal(stored["arr_1"], LABELS)
        assert json.loads(str(stored["settings"])) == SETTINGS
    assert [path.name for path in tmp_path.iterdir()] == ["samples.npz"]


def test_finished_sets_are_kept_under_numbers(opened, tmp_path):
    path = tmp_path / "samples.npz"
    for seed in range(3):
        kept = opened(seed=seed)
        kept.append(IMAGES)
        kept.finish(path, LABELS, {"seed": seed})
    stored = [json.loads(str(np.load(tmp_path / name)["settings"]))["seed"]
              for name in ("samples.1.npz", "samples.2.npz", "samples.npz")]  # fmt: skip
    assert stored == [0, 1, 2]
