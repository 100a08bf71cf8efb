"""Tests of bar_jax/nn/rotary.py."""

import jax
import jax.numpy as jnp
import numpy as np

from bar_jax.nn.rotary import BASE, axial_table, rotate

GRID, HEAD_DIM, PREFIX = (3, 4), 8, 2


def rows(*index):
    """cos, sin [1, S, C] of rows of the table."""
    return tuple(table[None, list(index)] for table in axial_table(GRID, HEAD_DIM, PREFIX))


def test_turns_pairs_as_complex_numbers():
    """Pair j of the first half turns by row * BASE^(-2j / half), of the second by the column."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 12, 2, HEAD_DIM)).astype(np.float32)
    half = HEAD_DIM // 2
    got = jax.jit(rotate)(x, *rows(*range(PREFIX, PREFIX + 12)))
    for place in range(12):
        row, column = divmod(place, GRID[1])
        angles = [at * BASE ** (-2 * j / half) for at in (row, column) for j in range(half // 2)]
        expected = (x[0, place, :, ::2] + 1j * x[0, place, :, 1::2]) * np.exp(1j * np.array(angles))
        np.testing.assert_allclose(got[0, place, :, ::2], expected.real, atol=1e-6)
        np.testing.assert_allclose(got[0, place, :, 1::2], expected.imag, atol=1e-6)


def test_score_depends_on_the_distance_only():
    """Query at (r, c) and key at (r + 1, c + 2) score the same wherever (r, c) is."""
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 1, 1, 1, HEAD_DIM)).astype(np.float32)
    place = lambda r, c: rows(PREFIX + r * GRID[1] + c)  # noqa: E731
    score = lambda r, c: float(  # noqa: E731
        jnp.sum(rotate(query, *place(r, c)) * rotate(key, *place(r + 1, c + 2)))
    )
    np.testing.assert_allclose([score(1, 0), score(0, 1), score(1, 1)], score(0, 0), atol=1e-5)
    assert abs(score(0, 0) - float(np.sum(query * key))) > 0.1


def test_prefix_is_not_turned():
    x = np.random.default_rng(0).normal(size=(1, 2, 3, HEAD_DIM)).astype(np.float32)
    np.testing.assert_array_equal(rotate(x, *rows(0, 1)), x)


def test_bfloat16_is_turned_in_float32():
    x = jnp.ones((1, 12, 1, HEAD_DIM), jnp.bfloat16)
    tables = rows(*range(PREFIX, PREFIX + 12))
    got = rotate(x, *tables)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, rotate(x.astype(jnp.float32), *tables).astype(jnp.bfloat16))


def test_in_a_sequence_all_channels_turn_with_the_place():
    """Angles place * 10000^(-2i / C), each for two neighbouring channels; none in the prefix."""
    length, channels, prefix = 7, 8, 2
    cos, sin = axial_table((length,), channels, prefix)
    angles = np.zeros((prefix + length, channels))
    for place in range(length):
        for channel in range(channels):
            angles[prefix + place, channel] = place * 10_000.0 ** (-(channel // 2) * 2 / channels)
    np.testing.assert_allclose(cos, np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(sin, np.sin(angles), atol=1e-6)
