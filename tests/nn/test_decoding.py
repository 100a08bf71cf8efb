"""Tests of bar_jax/nn/decoding.py and of the linear layer that reads its layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.nn.decoding import OUTPUT_FIRST, decoding_params
from bar_jax.nn.linear import linear

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
