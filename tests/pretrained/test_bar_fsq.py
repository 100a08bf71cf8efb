"""Tests of bar_jax/pretrained/bar_fsq.py; parity of what it fills: tests/golden_tokenizer.py."""

import jax
import numpy as np
import pytest
from flax.core import meta
from safetensors.numpy import load_file

from bar_jax.pretrained.bar_fsq import (
    NOT_READ,
    PREDICTOR_PREFIX,
    tensors_of,
    tokenizer_params,
)
from bar_jax.runtime.errors import InputError
from bar_jax.tokenizers import make_tokenizer
from bar_jax.training import restore

SIZES = {"encoder_depth": 2, "encoder_heads": 4, "decoder_depth": 4, "decoder_heads": 4}


@pytest.fixture
def tensors(published_files):
    return load_file(published_files["tokenizer"])


@pytest.fixture
def fresh(published_config):
    tokenizer = make_tokenizer(published_config)
    init = lambda key: restore.init_tokenizer(tokenizer, key)  # noqa: E731
    return meta.unbox(jax.eval_shape(init, jax.random.key(0)))


def kinds(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def test_fills_every_parameter(tensors, fresh):
    """Same tree, same shapes, same type as a fresh tokenizer's."""
    assert kinds(tokenizer_params(tensors, **SIZES)) == kinds(fresh)


def test_without_a_feature_predictor(tensors, fresh):
    rest = {name: x for name, x in tensors.items() if not name.startswith(PREDICTOR_PREFIX)}
    fresh.pop("feature_predictor")
    assert kinds(tokenizer_params(rest, **SIZES)) == kinds(fresh)


def test_a_feature_predictor_is_whole(tensors):
    tensors.pop("decoder.clip_projector.2.bias")
    with pytest.raises(InputError, match="no tensor decoder.clip_projector.2.bias"):
        tokenizer_params(tensors, **SIZES)


def test_comes_back_bit_by_bit(tensors):
    """All tensors of the file but those that are not read, and the positions in their own size."""
    found = tensors_of(tokenizer_params(tensors, **SIZES))
    expected = {name: x for name, x in tensors.items() if not name.startswith(NOT_READ)}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name, strict=True)
