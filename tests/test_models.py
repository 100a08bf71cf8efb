"""Tests of bar_jax/models.py; what it loads: tests/test_pipeline.py."""

import numpy as np
import pytest

from bar_jax import models
from bar_jax.config import default_config
from bar_jax.config_presets import tiny
from bar_jax.mesh import make_mesh

PARAMS = {"a": {"kernel": np.arange(6, dtype=np.float32)}}


def fingerprint(kind, params=PARAMS, **changes):
    config = tiny(default_config())
    config.model.tokenizer.kind = kind
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return models.fingerprint(config, params)


@pytest.mark.parametrize("bits, recorded", [(16, "9fa01f14154290db"), (10, "25f19132b2720be1")])
def test_the_fingerprint_of_bar_fsq_stays(bits, recorded):
    """Recorded when it was the only tokenizer: caches on disk have it."""
    assert fingerprint("bar_fsq", model__tokenizer__bits=bits) == recorded


@pytest.mark.parametrize("kind", ["kl_vae", "pixels"])
def test_fields_that_tokens_do_not_depend_on(kind):
    own = fingerprint(kind)
    for change in ({"bits": 10}, {"kl__scale": 0.5}, {"encoder__width": 32}):
        changes = {f"model__tokenizer__{name}": value for name, value in change.items()}
        assert fingerprint(kind, **changes) == own


@pytest.mark.parametrize("kind", ["kl_vae", "pixels"])
def test_what_tokens_depend_on(kind):
    found = {
        fingerprint(kind),
        fingerprint(kind, {"a": {"kernel": np.ones(6, np.float32)}}),
        fingerprint(kind, {"b": PARAMS["a"]}),
        fingerprint(kind, data__image_size=32),
        fingerprint(kind, model__tokenizer__patch_size=2),
    }
    assert len(found) == 5
    assert fingerprint("kl_vae", {}) != fingerprint("pixels", {})


@pytest.mark.parametrize(
    "load, field, part", [("tokenizer", "encode", ""), ("generator", "sample", "trunk")]
)
def test_what_was_trained_in_bfloat16_is_used_in_float32(monkeypatch, load, field, part):
    """Published caches and samples are made in float32; a field of its own says otherwise."""
    monkeypatch.setattr(models, "_load", lambda _, module, *rest: models.Trained(module, {}, 0))
    monkeypatch.setattr(models.workdir, "trained", lambda _, name: name)
    config = tiny(default_config())
    config.dtype = "bfloat16"
    load = getattr(models, f"load_{load}")

    def dtype():
        module = load(config, make_mesh()).module
        return (getattr(module, part) if part else module).dtype

    assert dtype() == "float32"
    config[field].dtype = "bfloat16"
    assert dtype() == "bfloat16"
