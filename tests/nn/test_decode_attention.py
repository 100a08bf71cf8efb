"""Tests of bar_jax/nn/decode_attention.py."""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.nn import attention, decode_attention
from bar_jax.nn.decode_attention import KINDS, attend_cached, attend_filled, choose, empty_cache
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.mesh import make_mesh

BATCH, LENGTH, HEADS, CHANNELS, FIRST = 2, 11, 4, 8, 3


@pytest.fixture(autouse=True, scope="module")
def cudnn_is_xla():
    """What cuDNN computes, computed by XLA; cuDNN itself runs on GPUs alone."""
    filled = functools.partial(attend_filled, implementation="xla")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_attention, "attend_filled", filled)
        yield


# query, key, value [3, B, S, H, C]
QKV = np.random.default_rng(0).normal(size=(3, BATCH, LENGTH, HEADS, CHANNELS)).astype(np.float32)


def naive(seen):
    """[B, S, H, C] in float64; position i sees the first seen[i]."""
    query, key, value = QKV.astype(np.float64)
    out = np.zeros_like(query)
    for b, i, h in np.ndindex(query.shape[:3]):
        scores = key[b, : seen[i], h] @ query[b, i, h] / np.sqrt(CHANNELS)
        weights = np.exp(scores - scores.max())
        out[b, i, h] = weights @ value[b, : seen[i], h] / weights.sum()
    return out


@functools.cache
def decoded(kind, axes=()):
    """A first piece of several positions, then one after another: results and cache."""
    empty = empty_cache(kind, BATCH, LENGTH, HEADS, CHANNELS, QKV.dtype)

    @jax.jit
    def run(qkv):
        first, cache = attend_cached(*qkv[:, :, :FIRST], empty, 0, causal=True)

        def step(cache, i):
            piece = jax.lax.dynamic_slice_in_dim(qkv, i, 1, axis=2)
            out, cache = attend_cached(*piece, cache, i, causal=True)
            return cache, out[:, 0]

        cache, rest = jax.lax.scan(step, cache, jnp.arange(FIRST, LENGTH))
        return jnp.concatenate([first, rest.swapaxes(0, 1)], axis=1), cache

    with jax.set_mesh(make_mesh(*axes)) if axes else contextlib.nullcontext():
        return run(QKV)


@pytest.mark.parametrize("kind", KINDS)
def test_one_after_another_matches_a_loop(kind):
    np.testing.assert_allclose(decoded(kind)[0], naive(np.arange(LENGTH) + 1), atol=1e-6)


@pytest.mark.parametrize("kind", ["xla", "cudnn"])
def test_cells_see_themselves_whole(kind):
    """Cells of 4 and 3 positions, then 4 again: all see what is filled, and no position after."""

    @jax.jit
    def run(qkv):
        cache, out = empty_cache(kind, BATCH, LENGTH, HEADS, CHANNELS, qkv.dtype), []
        for start, end in ((0, 4), (4, 7), (7, 11)):
            piece, cache = attend_cached(*qkv[:, :, start:end], cache, start)
            out.append(piece)
        return jnp.concatenate(out, axis=1)

    np.testing.assert_allclose(run(QKV), naive(np.repeat([4, 7, 11], [4, 3, 4])), atol=1e-6)


def test_what_is_filled_lies_in_the_cache():
    """Heads in front, or a row for each position, of which cuDNN reads a multiple of 8."""
    _, key, value = QKV
    for kind in ("xla", "pallas"):
        cache = decoded(kind)[1]
        np.testing.assert_array_equal(cache.keys.swapaxes(1, 2), key)
        np.testing.assert_array_equal(cache.values.swapaxes(1, 2), value)
    for kind, length in (("rows", LENGTH), ("cudnn", 16)):
        cache = decoded(kind)[1]
        assert cache.keys.shape == cache.values.shape == (BATCH, length, HEADS * CHANNELS)
        np.testing.assert_array_equal(cache.keys[:, :LENGTH], key.reshape(BATCH, LENGTH, -1))
        np.testing.assert_array_equal(cache.values[:, :LENGTH], value.reshape(BATCH, LENGTH, -1))


@pytest.mark.parametrize("kind", ["xla", "rows"])
def test_softmax_is_float32_in_bfloat16(kind):
    """Scores 100 and 100.3125, which bfloat16 would round to 100.5."""
    query = jnp.full((1, 2, 1, 4), 10.0)
    key = jnp.array([[5.0, 5.0, 5.0, 5.0], [5.0, 5.0, 5.0, 5.0625]])[None, :, None]
    value = jnp.array([[0.0] * 4, [1.0] * 4])[None, :, None]
    query, key, value = (x.astype(jnp.bfloat16) for x in (query, key, value))
    cache = empty_cache(kind, 1, 2, 1, 4, jnp.bfloat16)
    step = jax.jit(attend_cached)
    for i in range(2):
        out, cache = step(*(x[:, i : i + 1] for x in (query, key, value)), cache, i)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out[0, 0, 0, 0], 1 / (1 + np.exp(-0.3125)), atol=0.003)


@pytest.mark.parametrize("kind", ["rows", "cudnn"])
def test_devices_have_their_own_examples_and_heads(kind):
    np.testing.assert_allclose(decoded(kind, (2, 1, 4))[0], decoded(kind)[0], atol=1e-6)


@pytest.mark.parametrize("queries", [1, 16])
def test_cudnn_lowers_for_cuda(lowered_for_cuda, queries):
    """BAR-B's decoding, and a cell of xAR's; the cache itself is what the call is given."""
    half = jnp.bfloat16
    query = jax.ShapeDtypeStruct((2, queries, 12, 64), half)
    rows = jax.ShapeDtypeStruct((2, 296, 768), half)
    text = lowered_for_cuda(attend_filled, query, rows, rows, jnp.int32(5))
    assert text.count("@__cudnn$fmhaSoftmax") == 1
    assert not re.search("transpose.*296", text)


GPU, OLD_GPU = ("gpu", True), ("gpu", False)
CPU, TPU = ("cpu", False), ("tpu", False)


@pytest.fixture
def machine(monkeypatch):
    def pretend(platform, fused):
        monkeypatch.setattr(jax, "default_backend", lambda: platform)
        monkeypatch.setattr(attention, "has_fused_attention", lambda: fused)

    return pretend


@pytest.mark.parametrize(
    "devices, dtype, head_dim, queries, expected",
    [
        (GPU, "bfloat16", 64, 1, "cudnn"),
        (GPU, "bfloat16", 64, 16, "cudnn"),
        (GPU, "bfloat16", 256, 1, "pallas"),
        (GPU, "float32", 64, 1, "pallas"),
        (GPU, "float32", 64, 16, "xla"),
        (OLD_GPU, "bfloat16", 64, 1, "xla"),
        (OLD_GPU, "float32", 64, 1, "xla"),
        (CPU, "bfloat16", 64, 1, "xla"),
        (TPU, "bfloat16", 64, 1, "rows"),
        (TPU, "bfloat16", 64, 16, "xla"),
    ],
)
def test_auto(machine, devices, dtype, head_dim, queries, expected):
    machine(*devices)
    assert choose("auto", dtype, head_dim, queries) == expected


def test_a_platform_that_is_not_here(machine):
    machine(*CPU)
    assert choose("auto", "bfloat16", 64, platform="tpu") == "rows"


@pytest.mark.parametrize(
    "asked, devices, dtype, head_dim, queries, found",
    [
        ("cudnn", GPU, "float32", 64, 1, "dtype=float32"),
        ("cudnn", GPU, "bfloat16", 136, 1, "heads of 136 channels"),
        ("cudnn", GPU, "bfloat16", 60, 1, "heads of 60 channels"),
        ("cudnn", OLD_GPU, "bfloat16", 64, 1, "platform gpu.* Ampere or newer"),
        ("cudnn", CPU, "bfloat16", 64, 1, "platform cpu.* Ampere or newer"),
        ("pallas", CPU, "float32", 64, 1, "platform cpu.* a GPU"),
        ("pallas", TPU, "float32", 64, 1, "platform tpu.* a GPU"),
        ("pallas", GPU, "float32", 64, 16, "16 queries"),
        ("rows", TPU, "float32", 64, 16, "16 queries"),
    ],
)
def test_refused(machine, asked, devices, dtype, head_dim, queries, found):
    machine(*devices)
    with pytest.raises(InputError, match=f"^sample.attention: found '{asked}' with .*{found}"):
        choose(asked, dtype, head_dim, queries)


@pytest.mark.parametrize("asked", ["xla", "rows", "pallas"])
def test_what_is_asked_for_is_had(machine, asked):
    machine(*GPU)
    assert choose(asked, "bfloat16", 64) == asked
