"""Tests of bar_jax/inspection/flops.py, by hand."""

import jax
import jax.numpy as jnp
import pytest

from bar_jax.inspection.flops import product_flops

X, W = jnp.ones((2, 3)), jnp.ones((3, 4))
PRODUCT = 2 * 2 * 3 * 4


def scanned(x, w):
    return jax.lax.scan(lambda c, _: (c, c @ w), x, None, length=5)


def chosen(x, w):
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w + (x @ w) * 2)


@pytest.mark.parametrize(
    "function, products",
    [
        (lambda x, w: x @ w, 1),
        (lambda x, w: jnp.sum(x) + jnp.sum(w), 0),
        (jax.jit(lambda x, w: jnp.einsum("bi,io->bo", x, w)), 1),
        (jax.vmap(lambda x, w: x @ w, (0, None)), 1),
        (scanned, 5),
        (chosen, 2),
        # Backward: a product for each of the two gradients; with checkpointing forward again.
        (jax.grad(lambda x, w: jnp.sum(jnp.sin(x @ w)), (0, 1)), 3),
        (jax.grad(jax.checkpoint(lambda x, w: jnp.sum(jnp.sin(x @ w))), (0, 1)), 4),
    ],
)
def test_products(function, products):
    assert product_flops(function, X, W) == products * PRODUCT


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(groups):
    """8 places, 4 outputs, a 3 x 3 kernel over 2 inputs, or over 1 in two groups."""
    x, kernel = jnp.ones((1, 2, 4, 2)), jnp.ones((3, 3, 2 // groups, 4))
    convolve = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (1, 1), "SAME", feature_group_count=groups, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert product_flops(convolve, x, kernel) == 2 * 8 * 4 * 9 * 2 // groups
