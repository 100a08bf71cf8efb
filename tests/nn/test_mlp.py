"""Tests of bar_jax/nn/mlp.py."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from bar_jax.nn.mlp import GeluMLP, SwiGLU, swiglu_width


def filled(module, x):
    """Random parameters [-1, 1) of a module, as numpy arrays."""
    shapes = meta.unbox(jax.eval_shape(module.init, jax.random.key(0), x))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.uniform(-1, 1, s.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=(2, 3, 6)).astype(np.float32)


def test_swiglu_matches_numpy(x):
    params = filled(SwiGLU(), x)
    up, down = params["params"]["up"], params["params"]["down"]
    gate = x @ up["kernel"][:, 0] + up["bias"][0]
    value = x @ up["kernel"][:, 1] + up["bias"][1]
    expected = (gate / (1 + np.exp(-gate)) * value) @ down["kernel"] + down["bias"]
    np.testing.assert_allclose(SwiGLU().apply(params, x), expected, atol=1e-5)


@pytest.mark.parametrize("width, hidden", [(768, 2048), (1280, 3413), (2048, 5461), (6, 16)])
def test_swiglu_width(width, hidden):
    assert swiglu_width(width) == hidden


def test_swiglu_dropout_acts_on_the_hidden_units(x):
    """With `down` the identity of ones, the output sums the kept hidden units."""
    module = SwiGLU(dropout=0.5)
    params = filled(module, x)
    down = params["params"]["down"]
    down["kernel"], down["bias"] = np.ones_like(down["kernel"]), np.zeros_like(down["bias"])
    up = params["params"]["up"]
    up["kernel"], up["bias"] = 0 * up["kernel"], np.ones_like(up["bias"])
    unit = 1 / (1 + math.exp(-1))  # SiLU(1) * 1
    out = module.apply(params, x, rngs={"dropout": jax.random.key(0)})
    counts = np.asarray(out[..., 0]) / (2 * unit)  # kept units are doubled
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-5)
    assert 0 < np.min(counts) and np.max(counts) < 16


@pytest.mark.parametrize("gelu", ["exact", "tanh", "quick"])
def test_gelu_mlp_matches_numpy(x, gelu):
    module = GeluMLP(hidden=10, gelu=gelu)
    params = filled(module, x)
    up, down = params["params"]["up"], params["params"]["down"]
    h = x.astype(np.float64) @ up["kernel"] + up["bias"]
    if gelu == "exact":
        h = 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
    elif gelu == "tanh":
        h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    else:
        h = h / (1 + np.exp(-1.702 * h))
    expected = h @ down["kernel"] + down["bias"]
    np.testing.assert_allclose(module.apply(params, x), expected, atol=1e-5)


def test_computes_in_dtype_and_stores_float32(x):
    module = SwiGLU(dtype=jnp.bfloat16)
    params = filled(module, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    assert module.apply(params, x).dtype == jnp.bfloat16
