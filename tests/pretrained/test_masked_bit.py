"""Tests of bar_jax/pretrained/masked_bit.py; tests/test_golden_masked_bit.py tests the numbers."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from safetensors.numpy import load_file

from bar_jax.generators.causal import CausalTransformer
from bar_jax.generators.masked_bit import MaskedBitGenerator
from bar_jax.heads.masked_bit import MaskedBitHead
from bar_jax.pretrained.masked_bit import generator_params, generator_tensors, head_params
from bar_jax.runtime.errors import InputError

# Width 48, 2 layers, 4 heads, 4x4 tokens of 10 bits, 10 classes, head 2 x 64.
WEIGHTS = Path(__file__).parents[1] / "golden/masked_bit/bar_forward.safetensors"


@pytest.fixture(scope="module")
def tensors():
    return load_file(WEIGHTS)


def test_fills_every_parameter(tensors):
    """Same tree, same shapes, same type as a fresh generator's."""
    trunk = CausalTransformer(10, (4, 4), 10, 48, 2, 4, output_width=64, class_repeats=4)
    generator = MaskedBitGenerator(trunk, MaskedBitHead(10, 64, 2), (4, 4))
    init = functools.partial(generator.init, method=generator.initialize)
    key = jax.random.key(0)
    inputs = jnp.zeros((1, 16, 10), jnp.uint8), jnp.zeros(1, jnp.int32), key[None]
    fresh = meta.unbox(jax.eval_shape(init, key, *inputs))["params"]
    params = generator_params(tensors, depth=2, heads=4, head_depth=2)
    kinds = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    assert kinds(params) == kinds(fresh)


@pytest.mark.parametrize("name", ["cls_token", "blocks.1.attn.qkv.bias", "lm_head.input_proj.bias"])
def test_a_missing_tensor_is_named(tensors, name):
    rest = {key: tensor for key, tensor in tensors.items() if key != name}
    with pytest.raises(InputError, match=f"no tensor {name}"):
        generator_params(rest, depth=2, heads=4, head_depth=2)


def test_a_missing_tensor_of_a_head_is_named():
    with pytest.raises(InputError, match="no tensor head.input_embed.weight"):
        head_params({}, depth=1, prefix="head.")


def test_export_is_the_inverse(tensors):
    """Every name and every number of the file; the rotary tables are computed anew."""
    params = generator_params(tensors, depth=2, heads=4, head_depth=2)
    found = generator_tensors(params, grid=(4, 4), prefix=5)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        tolerance = 1e-6 if ".rope." in name else 0
        np.testing.assert_allclose(found[name], tensor, rtol=0, atol=tolerance, err_msg=name)


def test_export_of_another_patch_size():
    """8 x 8 tokens, 2 x 2 of them written as one: the tables are those of the 4 x 4 grid."""
    tensors = load_file(WEIGHTS.with_name("bar_forward_patch2.safetensors"))
    params = generator_params(tensors, depth=2, heads=2, head_depth=3)
    found = generator_tensors(params, grid=(4, 4), prefix=4)
    shapes = lambda tree: {name: tensor.shape for name, tensor in tree.items()}  # noqa: E731
    assert shapes(found) == shapes(tensors)
