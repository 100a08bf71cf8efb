"""Tests of bar_jax/pretrained/dino.py: the names and layout of the published discriminator."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from safetensors.numpy import load_file

from bar_jax.losses.discriminator import DINO, Discriminator
from bar_jax.pretrained.dino import backbone_params, head_params, head_tensors, vector_tensors
from bar_jax.runtime.errors import InputError

FILE = Path(__file__).parents[1] / "golden/masked_bit/losses.safetensors"
NET = Discriminator(16, 12, 2, 64, 16, 224)  # as in that file


def below(prefix):
    tensors = load_file(FILE)
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def backbone():
    return below("dino.")


@pytest.fixture(scope="module")
def discriminator():
    return below("loss.discriminator.")


def test_fills_every_parameter(backbone, discriminator):
    """Same tree and same shapes as a fresh discriminator's."""
    params = {"backbone": backbone_params(backbone, 2), "heads": head_params(discriminator)[0]}
    images = jnp.zeros((1, 32, 32, 3))
    fresh = meta.unbox(jax.eval_shape(NET.init, jax.random.key(0), images))["params"]
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert shapes(params) == shapes(fresh)


def test_only_the_bias_of_the_keys_is_zero(backbone):
    bias = backbone_params(backbone, 2)["vit"]["blocks"]["qkv"]["bias"]
    assert not np.any(bias[:, 1])
    np.testing.assert_array_equal(bias[3, 2].ravel(), backbone["blocks.3.attn.qkv.bias"][32:])
    assert np.any(backbone["blocks.3.attn.qkv.bias"][16:32])


def test_heads_and_vectors_go_there_and_back(discriminator):
    params, vectors = head_params(discriminator)
    back = head_tensors(params) | vector_tensors(vectors)
    assert back.keys() == discriminator.keys()
    for name, tensor in discriminator.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_heads_and_vectors_are_laid_out_alike(discriminator):
    """Sigma is the same in both layouts."""
    params, vectors = head_params(discriminator)
    name = "heads.3.1.fn.0"
    weight = discriminator[f"{name}.weight_orig"].reshape(16, -1)
    u, v = (discriminator[f"{name}.weight_{x}"] for x in "uv")
    ours = params["second"]["kernel"][3], vectors["second"]["v"][3], vectors["second"]["u"][3]
    np.testing.assert_allclose(np.einsum("kio,ki,o", *ours), u @ weight @ v, rtol=1e-5)


def test_a_missing_tensor_is_named(backbone):
    tensors = {name: t for name, t in backbone.items() if name != "blocks.2.mlp.fc1.bias"}
    with pytest.raises(InputError, match=r"no tensor blocks\.2\.mlp\.fc1\.bias"):
        backbone_params(tensors, 2)


def test_depth_by_default_is_that_of_the_published_network():
    assert DINO().keep[-1] == DINO().depth - 1
