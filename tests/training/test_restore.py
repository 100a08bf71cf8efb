"""Tests of bar_jax/training/restore.py; what it loads: tests/test_pipeline.py."""

import jax
import numpy as np
import pytest
from flax.core import meta

from bar_jax.config import default_config
from bar_jax.config.presets import tiny
from bar_jax.runtime.mesh import make_mesh
from bar_jax.tokenizers import make_tokenizer
from bar_jax.training import restore

PARAMS = {"a": {"kernel": np.arange(6, dtype=np.float32)}}


def tiny_config(kind, **changes):
    config = tiny(default_config())
    config.model.tokenizer.kind = kind
    config.model.basis.kind = "identity"
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def fingerprints(kind, params=PARAMS, **changes):
    return restore.fingerprints(tiny_config(kind, **changes), params)


def fingerprint(*arguments, **changes):
    """The only name of a tokenizer of real-valued tokens."""
    [name] = fingerprints(*arguments, **changes)
    return name


@pytest.mark.parametrize("bits, recorded", [(16, "9fa01f14154290db"), (10, "25f19132b2720be1")])
def test_the_older_fingerprint_of_bar_fsq_stays(bits, recorded):
    """Recorded when it was the only tokenizer: caches on disk have it."""
    assert fingerprints("bar_fsq", model__tokenizer__bits=bits)[1] == recorded


@pytest.mark.parametrize("kind", ["bar_fsq", "basis_fsq"])
def test_tokens_stay_those_of_a_tokenizer_with_another_decoder(kind):
    """What encodes, quantiser and basis names a cache; nothing of the decoder does."""
    init = lambda key: meta.unbox(restore.init_tokenizer(make_tokenizer(tiny_config(kind)), key))  # noqa: E731
    params = jax.eval_shape(init, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), params)
    own, older = fingerprints(kind, zeros)
    for name, tree in zeros.items():
        found = fingerprints(kind, zeros | {name: jax.tree.map(lambda leaf: leaf + 1, tree)})
        decodes = name in ("decoder_vit", "to_pixels", "pixel_conv")
        assert (found[0] == own, found[1] == older) == (decodes, False), name
    assert fingerprints(kind, zeros, model__tokenizer__decoder__depth=3)[0] == own
    assert fingerprints(kind, zeros, model__tokenizer__encoder__depth=3)[0] != own


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
    monkeypatch.setattr(restore, "_load", lambda _, module, *rest: restore.Trained(module, {}, 0))
    monkeypatch.setattr(restore.workdir, "trained", lambda _, name: name)
    config = tiny(default_config())
    config.dtype = "bfloat16"
    load = getattr(restore, f"load_{load}")

    def dtype():
        module = load(config, make_mesh()).module
        return (getattr(module, part) if part else module).dtype

    assert dtype() == "float32"
    config[field].dtype = "bfloat16"
    assert dtype() == "bfloat16"
