"""Tests of bar_jax/nn/narrow.py, and of the layers that read its layouts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.nn import narrow
from bar_jax.nn.decoding import OUTPUT_FIRST, SCALE, TILES, decoding_params
from bar_jax.nn.linear import linear

# Neither a multiple of DEPTH nor of LANES.
INPUTS, OUTPUTS = 70, 40
multiply = jax.jit(narrow.multiply, static_argnums=2)


@pytest.fixture(scope="module")
def kernel():
    return np.random.default_rng(0).normal(size=(INPUTS, OUTPUTS)).astype(np.float32)


def test_int8_is_off_by_half_a_step_at_most(kernel):
    kernel = np.concatenate([kernel, np.zeros((INPUTS, 1), np.float32)], axis=1)
    codes, scale = narrow.quantize(kernel)
    assert codes.dtype == jnp.int8 and scale.shape == (OUTPUTS + 1,)
    step = np.abs(kernel).max(axis=0) / 127
    error = np.abs(np.asarray(codes) * np.asarray(scale, np.float64) - kernel)
    assert np.all(error <= 0.5 * step * (1 + 1e-4))
    assert np.all(np.abs(np.asarray(codes)).max(axis=0)[:-1] == 127)


def narrowed(kernel, weights):
    """What is kept of a kernel, and what that stands for in float64."""
    if weights == "bfloat16":
        kept = jnp.asarray(kernel).astype(jnp.bfloat16)
        return kept, np.asarray(kept, np.float64)
    codes = jnp.asarray(np.clip(np.round(kernel * 30), -127, 127), jnp.int8)
    return codes, np.asarray(codes, np.float64)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_a_product_with_tiles_is_that_with_the_kernel(kernel, weights):
    """Of one row, of pairs of rows, and of too many for the loop."""
    kept, exact = narrowed(kernel, weights)
    tiles = narrow.to_tiles(kept)
    assert tiles.size * tiles.dtype.itemsize == 96 * 48 * kept.dtype.itemsize
    x = np.random.default_rng(1).normal(size=(9, INPUTS)).astype(np.float32)
    for rows in (1, 4, 9):
        found = multiply(x[:rows], tiles, OUTPUTS)
        assert found.dtype == jnp.float32
        expected = x[:rows].astype(np.float64) @ exact
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize(
    "layout, backend, rows", [(TILES, "cpu", 2), (OUTPUT_FIRST, "cpu", 64), ("kernel", "gpu", 2)]
)
def test_a_layer_gives_the_same_in_every_layout(
    kernel, weights, layout, backend, rows, monkeypatch
):
    """As the float32 kernel does, to what rounding can change."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    params = {"kernel": kernel.reshape(7, 10, 5, 8), "bias": np.ones((5, 8), np.float32)}
    decode = functools.partial(decoding_params, dtype=jnp.float32, weights=weights, rows=rows)
    stacked = {"blocks": {"layer": jax.tree.map(lambda p: p[None], params)}}
    kept = decode(stacked)["blocks_0"]["layer"]
    assert kept.keys() == {layout, "bias"} | ({SCALE} if weights == "int8" else set())
    module = linear((5, 8), (None,) * 4, inputs=2)
    x = np.random.default_rng(2).normal(size=(2, 3, 7, 10)).astype(np.float32)
    found = jax.jit(lambda params, x: module.apply({"params": params}, x))(kept, x)
    expected = np.tensordot(x, params["kernel"].astype(np.float64), 2) + 1
    step = np.abs(kernel).max() * (2**-8 if weights == "bfloat16" else 0.5 / 127)
    bound = step * np.abs(x).sum(axis=(2, 3))[..., None, None]
    assert found.shape == (2, 3, 5, 8) and np.all(np.abs(found - expected) < bound)
    assert np.any(np.abs(found - expected) > 1e-4)


def test_only_kernels_of_layers_are_narrow_and_not_those_of_adaln(kernel):
    layer = {"kernel": kernel, "bias": np.zeros(OUTPUTS, np.float32)}
    block = {"adaln": layer, "mlp": {"up": layer}, "norm": {"scale": np.ones(3, np.float32)}}
    tree = {"in_proj": layer, "blocks": jax.tree.map(lambda p: p[None], block)}
    found = decoding_params(tree, jnp.float32, weights="int8")
    assert found["blocks_0"]["mlp"]["up"].keys() == {TILES, SCALE, "bias"}
    for wide in (found["in_proj"], found["blocks_0"]["adaln"]):
        assert wide.keys() == {OUTPUT_FIRST, "bias"} and wide[OUTPUT_FIRST].dtype == jnp.float32
    assert found["blocks_0"]["norm"]["scale"].dtype == jnp.float32
