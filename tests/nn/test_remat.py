"""Tests of bar_jax/nn/remat.py, on the causal transformer."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from bar_jax.generators.causal import CausalTransformer
from bar_jax.nn import decoding

BATCH, GRID, WIDTH, DEPTH, REPEATS = 3, (2, 2), 24, 5, 2
POSITIONS = 1 + REPEATS + math.prod(GRID)
HIDDEN = 64  # int(2 / 3 * 4 * 24)


def transformer(remat, dtype=jnp.float32):
    return CausalTransformer(
        bits=3, grid=GRID, num_classes=4, width=WIDTH, depth=DEPTH, heads=2, output_width=5,
        class_repeats=REPEATS, remat=remat, dtype=dtype,
    )  # fmt: skip


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (BATCH, math.prod(GRID), 3))
    order = np.stack([rng.permutation(math.prod(GRID)) for _ in range(BATCH)])
    return jnp.asarray(bits), jnp.arange(BATCH), jnp.asarray(order)


@pytest.fixture(scope="module")
def params(inputs):
    shapes = meta.unbox(jax.eval_shape(transformer(False).init, jax.random.key(0), *inputs))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) / 3, jnp.float32), shapes)


def kept(remat, params, inputs):
    """What the layers of a bfloat16 step keep of each position: {dtype: numbers per layer}."""

    def backward(params):
        apply = lambda params: transformer(remat, jnp.bfloat16).apply(params, *inputs)
        return jax.vjp(apply, params)[1]

    found = {}
    for leaf in jax.tree.leaves(jax.eval_shape(backward, params)):
        if leaf.shape[:3] == (DEPTH, BATCH, POSITIONS):
            found[str(leaf.dtype)] = found.get(str(leaf.dtype), 0) + math.prod(leaf.shape[3:])
    return found


def test_products_are_kept_and_nothing_else(params, inputs):
    """What goes in; adaLN (6), queries, keys and values (3), out, and the MLP's two products."""
    expected = WIDTH * (6 + 3 + 1 + 1) + 2 * HIDDEN
    assert kept(False, params, inputs) == {"float32": WIDTH, "bfloat16": expected}


def test_with_remat_only_what_goes_in_is_kept(params, inputs):
    assert kept(True, params, inputs) == {"float32": WIDTH}


def gradient(module, params, inputs):
    loss = lambda params: jnp.sum(jnp.sin(module.apply(params, *inputs)))
    return jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize("remat", [False, True])
def test_gradient_is_that_of_a_block_that_keeps_all(params, inputs, remat, monkeypatch):
    found = gradient(transformer(remat), params, inputs)
    monkeypatch.setattr(decoding, "rematerialised", lambda block, everything: block)
    expected = gradient(transformer(remat), params, inputs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected
    )
