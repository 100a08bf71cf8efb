"""Tests of bar_jax/generators/shuffle.py."""

import numpy as np
import pytest

from bar_jax.generators.shuffle import shuffle, unshuffle


def test_a_patch_lists_its_rows_then_columns_then_bits():
    """A 2x4 grid of 2-bit tokens; token t holds (10 t, 10 t + 1)."""
    tokens = np.array([[[10 * t, 10 * t + 1] for t in range(8)]])
    expected = [[[0, 1, 10, 11, 40, 41, 50, 51], [20, 21, 30, 31, 60, 61, 70, 71]]]
    np.testing.assert_array_equal(shuffle(tokens, (2, 4), 2), expected)
    np.testing.assert_array_equal(unshuffle(np.array(expected), (2, 4), 2), tokens)


@pytest.mark.parametrize("grid, patch_size", [((4, 4), 1), ((4, 4), 4), ((6, 9), 3)])
def test_unshuffle_is_the_inverse_of_shuffle(grid, patch_size):
    tokens = np.random.default_rng(0).integers(0, 2, (2, grid[0] * grid[1], 5))
    shuffled = shuffle(tokens, grid, patch_size)
    assert shuffled.shape == (2, grid[0] * grid[1] // patch_size**2, 5 * patch_size**2)
    np.testing.assert_array_equal(unshuffle(shuffled, grid, patch_size), tokens)
