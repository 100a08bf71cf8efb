"""Tests of bar_jax/nn/decoding.py and of the linear layer that reads its layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from bar_jax.nn.decoding import OUTPUT_FIRST, decoding_params
from bar_jax.nn.linear import linear
from bar_jax.nn.mlp import GatedGeluMLP, SwiGLU

# shape of x, inputs, features
LAYERS = {
    "one to one": ((3, 6), 1, 4),
    "one to several": ((2, 3, 6), 1, (3, 2, 5)),
    "several to one": ((2, 3, 4, 6), 2, 5),
}


def layer(name):
    """A linear layer with random parameters, and its input."""
    shape, inputs, features = LAYERS[name]
    outputs = features if isinstance(features, tuple) else (features,)
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(*shape[len(shape) - inputs :], *outputs)).astype(np.float32)
    params = {"kernel": kernel, "bias": rng.normal(size=outputs).astype(np.float32)}
    module = linear(features, (None,) * kernel.ndim, inputs=inputs)
    return module, params, rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", LAYERS)
def test_a_linear_layer_gives_the_same_in_both_layouts(name):
    module, params, x = layer(name)
    laid_out = decoding_params({"layer": params}, jnp.float32)["layer"]
    assert laid_out.keys() == {OUTPUT_FIRST, "bias"}
    run = jax.jit(lambda params, x: module.apply({"params": params}, x))
    inputs = LAYERS[name][1]
    expected = np.tensordot(x.astype(np.float64), params["kernel"], inputs) + params["bias"]
    np.testing.assert_allclose(run(params, x), expected, atol=1e-5)
    np.testing.assert_allclose(run(laid_out, x), expected, atol=1e-5)


def test_kernels_are_output_first_on_cpu_only(monkeypatch):
    _, params, _ = layer("one to several")
    on_cpu = decoding_params({"layer": params}, jnp.float32)["layer"]
    np.testing.assert_array_equal(on_cpu[OUTPUT_FIRST], params["kernel"].reshape(6, 30).T)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    elsewhere = decoding_params({"layer": params}, jnp.float32)["layer"]
    np.testing.assert_array_equal(elsewhere["kernel"], params["kernel"])


def test_layers_are_taken_apart_in_their_order():
    stacked = {"norm": {"scale": jnp.arange(6.0).reshape(3, 2)}}
    params = decoding_params({"blocks": stacked, "table": jnp.ones(4)}, jnp.float32)
    assert params.keys() == {"blocks_0", "blocks_1", "blocks_2", "table"}
    np.testing.assert_array_equal(params["blocks_1"]["norm"]["scale"], [2.0, 3.0])


def test_linear_layers_are_cast_and_nothing_else_is():
    _, params, _ = layer("one to one")
    tree = {"layer": params, "norm": {"scale": jnp.ones(3)}, "table": jnp.ones(4)}
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, decoding_params(tree, jnp.bfloat16))
    assert set(dtypes["layer"].values()) == {jnp.dtype(jnp.bfloat16)}
    assert dtypes["norm"]["scale"] == dtypes["table"] == jnp.float32


@pytest.mark.parametrize("mlp, first", [(SwiGLU(), "up"), (GatedGeluMLP(), "gate")])
def test_hidden_units_of_a_gated_mlp_are_filled_up_where_rows_are_aligned(mlp, first, monkeypatch):
    """16 units to 64, and nothing changes: also not with int8 kernels."""
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    shapes = meta.unbox(jax.eval_shape(mlp.init, jax.random.key(0), x))["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    on_cpu = decoding_params({"mlp": params}, jnp.float32)["mlp"]
    assert on_cpu["down"][OUTPUT_FIRST].shape == (6, 16)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    elsewhere = decoding_params({"mlp": params}, jnp.float32)["mlp"]
    assert elsewhere["down"]["kernel"].shape == (64, 6)
    assert elsewhere[first]["kernel"].shape == (*params[first]["kernel"].shape[:-1], 64)
    again = decoding_params({"mlp": elsewhere}, jnp.float32)["mlp"]
    jax.tree.map(np.testing.assert_array_equal, again, elsewhere)
    run = jax.jit(lambda params: mlp.apply({"params": params}, x))
    expected = run(params)
    np.testing.assert_allclose(run(elsewhere), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(run(on_cpu), expected, rtol=1e-5, atol=1e-5)
    stacked = jax.tree.map(lambda p: p[None], {"blocks": {"mlp": params}})
    int8 = decoding_params(stacked, jnp.float32, weights="int8")["blocks_0"]["mlp"]
    assert int8["down"]["kernel"].shape == (64, 6)
    np.testing.assert_allclose(run(int8), expected, atol=0.05 * np.abs(expected).max())


def test_a_plain_mlp_is_not_filled_up(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    layer = lambda *shape: {"kernel": jnp.ones(shape), "bias": jnp.ones(shape[-1])}  # noqa: E731
    mlp = {"up": layer(6, 24), "down": layer(24, 6)}
    found = decoding_params({"mlp": mlp}, jnp.float32)["mlp"]
    jax.tree.map(np.testing.assert_array_equal, found, mlp)
