"""Tests of bar_jax/pretrained/mar.py; tests/test_golden_basis_hosts.py tests the numbers."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from safetensors.numpy import load_file

from bar_jax.generators.bidirectional import Transformer
from bar_jax.generators.mar import MAR
from bar_jax.heads.diffusion import DiffusionHead
from bar_jax.pretrained.manifest import read_manifest
from bar_jax.pretrained.mar import generator_params, tensors_of
from bar_jax.runtime import files
from bar_jax.runtime.errors import InputError

# 8 x 8 tokens of 16 channels, 20 classes 8 times, encoder 2 x 40, decoder 1 x 40, head 2 x 48.
WEIGHTS = Path(__file__).parents[1] / "golden/basis_hosts/mar_tiny.safetensors"
SIZES = {"depths": (2, 1), "heads": (2, 2), "head_depth": 2}


def fresh(module):
    """Shapes of a module's parameters."""
    init = functools.partial(module.init, method=module.initialize)
    y = jnp.zeros((1, module.length, module.channels))
    keys = jax.random.split(jax.random.key(0), 1)
    shapes = jax.eval_shape(init, keys[0], y, jnp.zeros(1, jnp.int32), keys)
    return meta.unbox(shapes)["params"]


@pytest.fixture(scope="module")
def tensors():
    return load_file(WEIGHTS)


def test_fills_every_parameter(tensors):
    """Same tree, same shapes, same type as a fresh generator's."""
    part = functools.partial(Transformer, 40, heads=2)
    module = MAR(64, 20, part(depth=2), part(depth=1), DiffusionHead(16, 48, 2), class_repeats=8)
    kinds = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    assert kinds(generator_params(tensors, **SIZES)) == kinds(fresh(module))


def test_export_is_the_inverse(tensors):
    found = tensors_of(generator_params(tensors, **SIZES))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name, strict=True)


@pytest.mark.parametrize(
    "name", ["fake_latent", "decoder_blocks.0.attn.qkv.bias", "diffloss.net.cond_embed.bias"]
)
def test_a_missing_tensor_is_named(tensors, name):
    rest = {key: tensor for key, tensor in tensors.items() if key != name}
    with pytest.raises(InputError, match=f"no tensor {name}"):
        generator_params(rest, **SIZES)


@pytest.mark.parametrize(
    "model, width, depth, heads, head, parameters",
    [
        ("mar_base", 768, 12, 12, (1024, 6), 207_924_768),
        ("mar_large", 1024, 16, 16, (1280, 8), 478_326_304),
        ("mar_huge", 1280, 20, 16, (1536, 12), 942_403_104),
    ],
)
def test_published_models(model, width, depth, heads, head, parameters):
    """Names and shapes of the full-size modules, without their numbers."""
    part = Transformer(width, depth, heads)
    params = fresh(MAR(256, 1000, part, part.clone(), DiffusionHead(16, *head)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters
    found = jax.eval_shape(tensors_of, params)
    manifest = read_manifest(files.shipped("third_party") / "mar" / f"{model}.json")
    assert {name: tensor.shape for name, tensor in found.items()} == manifest.tensors
