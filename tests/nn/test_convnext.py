"""Tests of bar_jax/nn/convnext.py; the whole network is compared in the golden cases."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from bar_jax.nn.convnext import ConvNeXt, ConvNeXtBlock


def filled(module, x):
    """Random parameters, so that no scale is 1 and no bias 0."""
    shapes = meta.unbox(jax.eval_shape(module.init, jax.random.key(0), x))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32) / 2, shapes)


def test_block_matches_numpy():
    x = np.random.default_rng(1).normal(size=(1, 5, 6, 4)).astype(np.float32)
    block = ConvNeXtBlock()
    params = filled(block, x)
    p = params["params"]
    padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
    h = p["depthwise"]["bias"] + sum(
        padded[:, i : i + 5, j : j + 6] * p["depthwise"]["kernel"][i, j, 0]
        for i in range(7)
        for j in range(7)
    )
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
    h = h * p["norm"]["scale"] + p["norm"]["bias"]
    h = h @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"]
    h = 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
    h = h @ p["mlp"]["down"]["kernel"] + p["mlp"]["down"]["bias"]
    found, _ = jax.jit(block.apply)(params, x)
    np.testing.assert_allclose(found, x + p["scale"] * h, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits_are_float32(dtype):
    net = ConvNeXt((2, 3, 4, 5), (1, 2, 1, 1), 7, dtype)
    x = jnp.ones((2, 32, 32, 3))
    params = filled(net, x)
    assert params["params"]["stage1"]["scale"].shape == (2, 3)
    logits = jax.jit(net.apply)(params, x)
    assert logits.shape == (2, 7) and logits.dtype == jnp.float32
