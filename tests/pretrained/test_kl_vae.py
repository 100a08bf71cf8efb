"""Tests of bar_jax/pretrained/kl_vae.py; parity of what it fills: tests/golden_kl_vae.py."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax.core import meta
from safetensors.numpy import load_file

from bar_jax.pretrained.kl_vae import params_of, tensors_of
from bar_jax.runtime.errors import InputError
from bar_jax.tokenizers.kl_vae import KLVAE
from bar_jax.training import restore

FILE = Path(__file__).parents[1] / "golden/basis_hosts/kl16_tiny.safetensors"
VAE = KLVAE(image_size=64, width=32, multipliers=(1, 1, 2, 1, 1), blocks=1)


def test_fills_every_parameter():
    """Same tree, same shapes, same type as fresh parameters."""
    kinds = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    init = lambda key: restore.init_tokenizer(VAE, key)  # noqa: E731
    fresh = meta.unbox(jax.eval_shape(init, jax.random.key(0)))
    assert kinds(params_of(load_file(FILE), VAE)) == kinds(fresh)


def test_comes_back_bit_by_bit():
    tensors = load_file(FILE)
    found = tensors_of(params_of(tensors, VAE), VAE)
    assert found.keys() == tensors.keys()
    assert [n for n, tensor in tensors.items() if not np.array_equal(found[n], tensor)] == []


def test_a_missing_tensor_is_named():
    tensors = load_file(FILE)
    del tensors["encoder.down.4.attn.0.k.bias"]
    with pytest.raises(InputError, match="no tensor encoder.down.4.attn.0.k.bias"):
        params_of(tensors, VAE)
