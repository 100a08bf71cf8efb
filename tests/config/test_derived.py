"""Tests of bar_jax/config/derived.py: what follows from fields, and presets."""

import math

import numpy as np
import pytest

from bar_jax import config as config_lib
from bar_jax.config import (
    default_config,
    duration,
    flatten,
    profiled_steps,
    unknown_field,
)
from bar_jax.config.presets import sized, tiny
from bar_jax.generators.kind import written_width
from bar_jax.runtime.errors import InputError

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("size", [None, ""])
def test_no_size_changes_nothing(size):
    assert flatten(sized(default_config(), size)) == flatten(default_config())


def test_tiny_adds_and_removes_no_field():
    names = [name for name, _ in flatten(tiny(default_config()))]
    assert names == [name for name, _ in flatten(default_config())]


def test_an_unknown_size_is_refused():
    with pytest.raises(InputError, match=r"huge: found 'huge', expected tiny"):
        sized(default_config(), "huge")


def test_integers_of_numpy_become_plain_ones():
    config = default_config()
    config.sample.labels = tuple(np.arange(2))
    config_lib.settle(config)
    assert [type(label) for label in config.sample.labels] == [int, int]


# --- durations -----------------------------------------------------------------------------------


def _steps(**given):
    """Steps of a duration, at 10 images a step and 24 images an epoch."""
    values = {"steps": 0, "epochs": 0.0, "images": 0} | given
    return duration(_section(values), "train_generator.", 10, 24)


def _section(values):
    config = default_config().train_generator
    config.update(values)
    return config


@pytest.mark.parametrize(
    "given, steps",
    [
        ({"steps": 7}, 7),
        ({"epochs": 5.0}, 12),
        ({"epochs": 0.5}, 1),  # 1.2
        ({"epochs": 0.01}, 1),  # 0.024: a duration that is given is at least a step
        ({"images": 100}, 10),
        ({"images": 104}, 10),
        ({"images": 106}, 11),
        ({"images": 1}, 1),
    ],
)
def test_duration_in_steps(given, steps):
    assert _steps(**given) == steps


@pytest.mark.parametrize(
    "given, found",
    [
        ({}, "found no duration"),
        ({"steps": 3, "epochs": 1.0}, "found steps=3, epochs=1.0"),
        ({"epochs": 1.0, "images": 5}, "found epochs=1.0, images=5"),
        ({"steps": -1}, "found steps=-1"),
        ({"epochs": NAN}, "found epochs=nan"),
        ({"epochs": INF}, "found epochs=inf"),
    ],
)
def test_a_duration_that_is_none(given, found):
    with pytest.raises(InputError, match=f"^train_generator.steps: {found}, expected one of"):
        _steps(**given)


def test_an_optional_duration_may_be_zero():
    section = default_config().train_generator.optimizer
    section.warmup_epochs = 0.0
    assert duration(section, "train_generator.optimizer.warmup_", 10, 24, required=False) == 0


# --- unknown fields ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, meant",
    [
        ("model.generator.dpth", "model.generator.depth"),
        ("model.generatr.depth", "model.generator.depth"),
        ("generator.class_repeats", "model.generator.class_repeats"),
        ("class_repeat", "model.generator.class_repeats"),
        ("train_generator.learning_rate", "train_generator.optimizer.learning_rate"),
        ("sed", "seed"),
    ],
)
def test_unknown_field_says_what_was_meant(name, meant):
    assert str(unknown_field(name)) == (
        f"config.{name}: found no such field,"
        f" expected a field of bar_jax/config; did you mean {meant}?"
    )


def test_unknown_field_does_not_guess_wildly():
    assert "did you mean" not in str(unknown_field("xylophone"))


def test_bits_and_grid_with_token_shuffling():
    config = tiny(default_config())
    config.model.generator.patch_size = 2
    assert (config_lib.token_grid(config), written_width(config)) == ((4, 4), 64)


@pytest.mark.parametrize(
    ("text", "steps"), [("", range(0)), ("10:15", range(10, 15)), ("0:1", range(1))]
)
def test_profiled_steps(text, steps):
    assert profiled_steps(text) == steps


@pytest.mark.parametrize("text", ["10", "5:5", "7:2", "a:b", "-1:3", "1:2:3"])
def test_profiled_steps_name_what_is_wrong(text):
    with pytest.raises(InputError, match=f"^profile: found '{text}', expected FIRST:END"):
        profiled_steps(text)
