"""Tables of a few rows, and the dtype of the layers' sums."""

import jax
import jax.numpy as jnp
import numpy as np

from bar_jax.nn.linear import lookup


def test_lookup_gives_the_rows(key):
    table = jax.random.normal(key, (3, 5))
    index = np.array([[0, 2, 1, 1], [2, 2, 0, 1]])
    np.testing.assert_array_equal(lookup(table, index), np.asarray(table)[index])


def test_lookup_adds_up_the_gradient_of_each_row(key):
    """Against a loop in float64."""
    index = np.random.default_rng(0).integers(0, 3, 300)
    weight = np.random.default_rng(1).normal(size=(300, 5))
    wanted = np.zeros((3, 5))
    for i, row in zip(index, weight, strict=True):
        wanted[i] += row

    objective = lambda table: jnp.sum(lookup(table, index) * weight.astype(np.float32))
    gradient = jax.grad(objective)(jax.random.normal(key, (3, 5)))
    np.testing.assert_allclose(gradient, wanted, atol=1e-5)


def test_lookup_has_no_scatter_in_its_gradient(key):
    """Thousands of rows that are added to one of three places wait for each other on a GPU."""
    objective = lambda table: jnp.sum(lookup(table, jnp.zeros(100, jnp.int32)))
    assert "scatter" not in str(jax.make_jaxpr(jax.grad(objective))(jnp.ones((3, 5))))


def test_the_gradient_of_a_bfloat16_lookup_counts_past_256():
    """Summed in bfloat16, 256 + 1 would stay 256."""
    objective = lambda table: jnp.sum(lookup(table, jnp.ones(1000, jnp.int32)).astype(jnp.bfloat16))
    np.testing.assert_array_equal(jax.grad(objective)(jnp.ones((3, 1)))[:, 0], [0, 1000, 0])
