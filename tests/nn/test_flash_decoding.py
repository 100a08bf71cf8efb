"""Tests of bar_jax/nn/flash_decoding.py. On a CPU the kernel is interpreted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.nn import flash_decoding as flash
from bar_jax.nn.flash_decoding import Blocks, flash_decoding
from bar_jax.runtime.mesh import make_mesh


def inputs(batch, heads, length, channels, dtype=jnp.float32):
    """query [B, H, C], keys and values [B, H, S, C]."""
    rng = np.random.default_rng(0)
    shapes = (batch, heads, channels), *((batch, heads, length, channels),) * 2
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def naive(query, keys, values, filled):
    """One head of one example at a time, in float64."""
    query, keys, values = (np.asarray(x, np.float64) for x in (query, keys, values))
    out = np.zeros_like(query)
    for b, h in np.ndindex(query.shape[:2]):
        scores = keys[b, h, :filled] @ query[b, h] / np.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, h] = weights @ values[b, h, :filled] / weights.sum()
    return out


@pytest.mark.parametrize(
    "sizes, dtype, cut, bounds",
    [
        ((2, 12, 37, 64), jnp.float32, None, (1, 16, 32, 33, 36, 37)),
        ((1, 16, 70, 64), jnp.bfloat16, Blocks(16, 3), (1, 16, 17, 49, 70)),
        ((2, 20, 40, 80), jnp.float32, Blocks(16, 1), (1, 31, 33, 40)),
        ((4, 2, 9, 12), jnp.float32, Blocks(8, 2), (1, 8, 9)),
    ],
    ids=["splits-by-default", "bfloat16", "80-channels", "12-channels"],
)
def test_matches_a_loop_over_heads(sizes, dtype, cut, bounds):
    """With the filled part ending in, before and after a block's end, for one compiled program."""
    query, keys, values = inputs(*sizes, dtype)
    attention = jax.jit(functools.partial(flash_decoding, cut=cut))
    for filled in bounds:
        out = attention(query, keys, values, filled)
        assert out.dtype == dtype
        tolerance = 2e-6 if dtype == jnp.float32 else 0.01
        np.testing.assert_allclose(
            out.astype(jnp.float32), naive(query, keys, values, filled), atol=tolerance
        )


@pytest.fixture(scope="module")
def small():
    """Arguments, and the kernel on blocks of 8 positions."""
    return inputs(2, 4, 24, 8), jax.jit(functools.partial(flash_decoding, cut=Blocks(8, 2)))


def test_blocks_that_are_not_filled_are_not_read(small):
    """Numbers that would spoil any sum lie behind the last block of which something is filled."""
    (query, keys, values), attention = small
    spoilt = (x.at[:, :, 16:].set(jnp.nan) for x in (keys, values))
    out = attention(query, *spoilt, 15)
    np.testing.assert_array_equal(out, attention(query, keys, values, 15))


def test_large_scores_do_not_overflow(small):
    (query, keys, values), attention = small
    out = attention(100 * query, 100 * keys, values, 24)
    np.testing.assert_allclose(out, naive(100 * query, 100 * keys, values, 24), atol=1e-4)


@pytest.mark.parametrize("axes", [(2, 2, 2), (1, 1, 8)])
def test_devices_have_their_own_examples_and_heads(small, axes):
    """Also where heads, or examples, are not to be divided."""
    arguments, attention = small
    with jax.set_mesh(make_mesh(*axes)):
        out = attention(*arguments, 20)
    np.testing.assert_allclose(out, attention(*arguments, 20), atol=1e-6)


def test_a_few_heads_share_a_gpu_and_many_do_not_split():
    """Of BAR-B: one image with guidance, and 125."""
    assert flash.blocks(2, 12, 289) == Blocks(64, 5)
    assert flash.blocks(250, 12, 289) == Blocks(64, 1)
    assert flash.blocks(2, 12, 20).size == 16  # a block is whole


@pytest.mark.parametrize("channels", [64, 80])
def test_lowers_for_cuda(channels, lowered_for_cuda):
    """To a kernel of Triton's, whose front end refuses what is not a power of 2."""
    for batch in (2, 250):
        text = lowered_for_cuda(flash_decoding, *inputs(batch, 1, 289, channels), jnp.int32(1))
        assert "triton" in text
