"""Tests of bar_jax/bases/permutation.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.bases.kind import Shape
from bar_jax.bases.permutation import (
    cells,
    draw_orders,
    gather,
    random_share,
    raster,
    scatter,
    subsample,
)
from bar_jax.runtime.errors import InputError


def test_gather_takes_tokens_in_the_order_written():
    tokens = jnp.array([[[10], [11], [12]], [[20], [21], [22]]])
    order = jnp.array([[2, 0, 1], [0, 2, 1]])
    np.testing.assert_array_equal(gather(tokens, order), [[[12], [10], [11]], [[20], [22], [21]]])


def test_scatter_puts_tokens_at_their_places():
    """Not gather again: [2, 0, 1] is no involution."""
    written = jnp.array([[[12], [10], [11]]])
    np.testing.assert_array_equal(scatter(written, jnp.array([[2, 0, 1]])), [[[10], [11], [12]]])


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 3), (2, 6, 3, 2)])
def test_scatter_is_the_inverse_of_gather(key, shape):
    tokens = jax.random.normal(key, shape)
    order = jnp.argsort(jax.random.uniform(key, shape[:2]), axis=1)
    np.testing.assert_array_equal(scatter(gather(tokens, order), order), tokens)


@pytest.mark.parametrize(
    "step, share", [(0, 1), (100, 1), (101, 0.99), (150, 0.5), (199, 0.01), (200, 0), (900, 0)]
)
def test_random_share_is_one_then_linear_then_zero(step, share):
    np.testing.assert_allclose(random_share(step, 100, 200), share, atol=1e-7)


def test_random_share_may_jump():
    assert [float(random_share(s, 100, 100)) for s in (99, 100, 101)] == [1, 0, 0]


def test_share_zero_is_raster_and_share_one_is_the_argsort(key):
    choice, places = jax.random.uniform(key, (4,)), jax.random.uniform(key, (4, 9))
    raster = draw_orders(0.0, choice, places)
    assert raster.dtype == jnp.int32
    np.testing.assert_array_equal(raster, np.tile(np.arange(9), (4, 1)))
    np.testing.assert_array_equal(draw_orders(1.0, choice, places), np.argsort(places, axis=1))


def test_each_example_is_random_where_its_draw_is_below_the_share(key):
    places = jax.random.uniform(key, (3, 9))
    orders = draw_orders(0.5, jnp.array([0.4, 0.5, 0.6]), places)
    is_raster = np.all(np.asarray(orders) == np.arange(9), axis=1)
    np.testing.assert_array_equal(is_raster, [False, True, True])


def test_fixed_orders_by_hand():
    """4 x 4 tokens, blocks of 2 x 2."""
    assert raster(Shape((4, 4))).tolist() == list(range(16))
    assert cells(Shape((4, 4))).tolist() == [
        *(0, 1, 4, 5), *(2, 3, 6, 7), *(8, 9, 12, 13), *(10, 11, 14, 15),
    ]  # fmt: skip
    assert subsample(Shape((4, 4))).tolist() == [
        *(0, 2, 8, 10), *(1, 3, 9, 11), *(4, 6, 12, 14), *(5, 7, 13, 15),
    ]  # fmt: skip


@pytest.mark.parametrize("grid, block", [((4, 6), 2), ((16, 16), 8), ((9, 9), 3), ((3, 5), 1)])
def test_fixed_orders_by_loops(grid, block):
    """A token of a cell shares the cell's corner; one of a subsample its offset in the block."""
    rows, columns = grid
    places = [(i, j) for i in range(rows) for j in range(columns)]
    by_cell = sorted(places, key=lambda p: (p[0] // block, p[1] // block, p))
    by_offset = sorted(places, key=lambda p: (p[0] % block, p[1] % block, p))
    for order, expected in ((cells, by_cell), (subsample, by_offset)):
        found = order(Shape(grid, block))
        assert found.dtype == np.int32
        assert found.tolist() == [i * columns + j for i, j in expected]


@pytest.mark.parametrize("order", [cells, subsample])
@pytest.mark.parametrize("grid, block", [((4, 6), 4), ((6, 4), 4), ((4, 4), 0), ((4, 4), 8)])
def test_blocks_that_do_not_tile_the_grid(order, grid, block):
    with pytest.raises(InputError, match=f"model.basis.block: found {block}"):
        order(Shape(grid, block))
