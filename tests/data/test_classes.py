"""Tests of bar_jax/data/classes.py: which class is label N, kept in a workdir."""

import json
import logging

import pytest

from bar_jax import data
from bar_jax.config import default_config
from bar_jax.data import classes
from bar_jax.runtime.errors import InputError

NAMES = ("2", "10")


@pytest.fixture
def config(tmp_path):
    config = default_config()
    config.workdir, config.data.source = str(tmp_path / "run"), "folder"
    return config


@pytest.fixture
def labelled(config, tmp_path):
    """A workdir with tokens of the classes 2 and 10."""
    classes.keep(config, NAMES)
    (tmp_path / "run/cache/train").mkdir(parents=True)
    (tmp_path / "run/cache/train/plan.json").touch()
    return config


def test_labels_are_logged_and_kept(config, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        classes.keep(config, NAMES)
    assert "labels: 0 2, 1 10 (" in caplog.text
    assert json.loads((tmp_path / "run/classes.json").read_text()) == {"0": "2", "1": "10"}
    assert classes.read(config.workdir) == NAMES


def test_of_many_classes_the_log_tells_some(config, caplog):
    with caplog.at_level(logging.INFO):
        classes.keep(config, [f"n{i}" for i in range(1000)])
    assert "17 n17, 18 n18, ... 999 n999 (" in caplog.text


def test_other_classes_are_kept_while_nothing_is_labelled(config):
    classes.keep(config, ("a", "b"))
    classes.keep(config, NAMES)
    assert classes.read(config.workdir) == NAMES


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("10", "2"), "data.path: class 0: found '10', expected '2', as the tokens of"),
        (("2", "10", "11"), "data.path: class 2: found '11', expected None"),
    ],
)
def test_labels_do_not_change_under_tokens(labelled, names, message):
    with pytest.raises(InputError, match=message):
        classes.keep(labelled, names)


def test_tokens_of_a_version_that_sorted_names_as_text_are_not_mixed_in(labelled, tmp_path):
    (tmp_path / "run/classes.json").unlink()
    with pytest.raises(InputError, match="class 0: found '2', expected '10', as the tokens"):
        classes.keep(labelled, NAMES)


def test_images_of_other_classes_are_not_opened(labelled, tmp_path):
    for name in ("2", "3"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "a.png").touch()
    labelled.data.update(dict(path=str(tmp_path / "photos"), train_split="", num_classes=2))
    with pytest.raises(InputError, match="class 1: found '3', expected '10'"):
        data.open_images(labelled)


def test_a_damaged_file_is_named(labelled, tmp_path):
    (tmp_path / "run/classes.json").write_text('{"a": "b"}')
    with pytest.raises(InputError, match="classes.json: found an unreadable file .KeyError: '0'"):
        classes.read(labelled.workdir)
