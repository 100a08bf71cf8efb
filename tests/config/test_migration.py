"""Tests of bar_jax/config/migration.py: configs as older versions stored them."""

import json

import pytest

from bar_jax.config import default_config, flatten
from bar_jax.config.migration import migrated, restored
from bar_jax.config.presets import from_scratch

SCRATCH = {
    "model.tokenizer.encoder.kind": "vit",
    "model.tokenizer.encoder.position_grid": 0,
    "model.tokenizer.decoder.predictor_width": 0,
    "train_tokenizer.encoder_learning_rate": 1.0,
    **{f"train_tokenizer.loss.{n}": 0.0 for n in ("lpips", "convnext", "gram", "alignment", "gan")},
}


def _stored(config, *lacking):
    """A config as JSON has it, without these fields."""
    stored = json.loads(config.to_json())
    for name in lacking:
        *sections, leaf = name.split(".")
        section = stored
        for each in sections:
            section = section[each]
        del section[leaf]
    return stored


def test_todays_config_comes_back():
    config = default_config()
    config.seed, config.sample.labels = 3, (1, 2)
    assert restored(_stored(config)) == config


def test_fields_that_are_newer_have_their_defaults():
    lacking = ("sample.clip", "train_generator.save_minutes", "model.basis")
    stored = _stored(default_config(), *lacking)
    assert restored(stored) == default_config()
    assert not {name for name in migrated(stored) if name.startswith(lacking)}


def test_a_field_that_is_no_more_says_nothing():
    stored = _stored(default_config())
    stored["model"]["generator"]["bells"] = 3
    stored["whistles"] = {"loud": True}
    assert restored(stored) == default_config()


def test_before_encoders_had_a_kind():
    """What the presets of then made, whatever those of today make."""
    config = default_config()
    from_scratch(config)
    stored = _stored(config, *SCRATCH)
    assert SCRATCH.items() <= dict(flatten(restored(stored))).items()
    assert restored(stored) == config


def test_what_an_old_config_says_itself_stays():
    config = default_config()
    stored = _stored(config, "model.tokenizer.encoder.kind")
    expected = dict(flatten(config)) | {"model.tokenizer.encoder.kind": "vit"}
    assert dict(flatten(restored(stored))) == expected


@pytest.mark.parametrize("order, today", [("raster", "basis"), ("random", "random")])
def test_before_there_were_bases(order, today):
    stored = _stored(default_config())
    stored["sample"]["order"] = order
    assert restored(stored).sample.order == today
