"""Tests of bar_jax/nn/attention.py."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.nn.attention import attend


@pytest.fixture(scope="module")
def qkv():
    """query, key, value [2, 5, 3, 4]."""
    return np.random.default_rng(0).normal(size=(3, 2, 5, 3, 4)).astype(np.float32)


def naive(query, key, value, visible):
    """One query at a time, in float64."""
    query, key, value = (x.astype(np.float64) for x in (query, key, value))
    out = np.zeros_like(query)
    for b, q, h in np.ndindex(query.shape[:3]):
        seen = np.flatnonzero(visible[q])
        scores = np.array([query[b, q, h] @ key[b, k, h] for k in seen]) / np.sqrt(query.shape[-1])
        weights = np.exp(scores) / np.exp(scores).sum()
        out[b, q, h] = weights @ value[b, seen, h]
    return out


def test_matches_a_loop_over_queries(qkv):
    expected = naive(*qkv, np.ones((5, 5), bool))
    np.testing.assert_allclose(jax.jit(attend)(*qkv), expected, atol=1e-6)


def test_mask_matches_a_loop_over_queries(qkv):
    visible = np.eye(5, dtype=bool) | np.tri(5, k=-2, dtype=bool)
    expected = naive(*qkv, visible)
    np.testing.assert_allclose(jax.jit(attend)(*qkv, visible), expected, atol=1e-6)


def test_causal_matches_a_loop_over_queries(qkv):
    expected = naive(*qkv, np.tri(5, dtype=bool))
    out = jax.jit(functools.partial(attend, causal=True))(*qkv)
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_softmax_is_float32_in_bfloat16():
    """Scores 100 and 100.3125, which bfloat16 would round to 100.5."""
    query = np.full((1, 1, 1, 4), 10.0, np.float32)
    key = np.array([[5.0, 5.0, 5.0, 5.0], [5.0, 5.0, 5.0, 5.0625]], np.float32)[None, :, None]
    value = np.array([[0.0] * 4, [1.0] * 4], np.float32)[None, :, None]
    out = jax.jit(attend)(*(jnp.asarray(x, jnp.bfloat16) for x in (query, key, value)))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out[0, 0, 0, 0], 1 / (1 + np.exp(-0.3125)), atol=0.003)


def test_dropout_drops_weights_and_keeps_their_mean(key):
    """With equal scores and value 1 the output is (kept weights) / (K (1 - rate))."""
    ones, rate, places = jnp.ones((64, 8, 2, 4)), 0.25, 8
    out = jax.jit(lambda q: attend(q, q, q, None, dropout_rate=rate, dropout_key=key))(ones)[..., 0]
    kept = out * places * (1 - rate)
    np.testing.assert_allclose(kept, jnp.round(kept), atol=1e-5)
    assert len(np.unique(jnp.round(kept))) > 4  # each query draws its own
    np.testing.assert_allclose(out.mean(), 1.0, atol=4 * np.sqrt(rate / (1 - rate) / out.size / 8))


def test_dropout_path_agrees_with_the_plain_one(qkv, key):
    """A rate too small to drop anything goes the other way through the code."""
    plain = jax.jit(functools.partial(attend, causal=True))
    tiny = jax.jit(lambda *x: attend(*x, causal=True, dropout_rate=1e-9, dropout_key=key))
    np.testing.assert_allclose(tiny(*qkv), plain(*qkv), atol=1e-6)


@pytest.mark.parametrize(
    "platform, capability, dtype, head_dim, masked, expected",
    [
        ("PJRT C API\ncuda 12090", "9.0", jnp.bfloat16, 64, False, "cudnn"),
        ("PJRT C API\ncuda 12090", "7.5", jnp.bfloat16, 64, False, "xla"),
        ("PJRT C API\nrocm 60300", "gfx90a", jnp.bfloat16, 64, False, "xla"),
        ("PJRT C API\ncuda 12090", "9.0", jnp.float32, 64, False, "xla"),
        ("PJRT C API\ncuda 12090", "9.0", jnp.bfloat16, 12, False, "xla"),
        ("PJRT C API\ncuda 12090", "9.0", jnp.bfloat16, 64, True, "xla"),
        (None, None, jnp.bfloat16, 64, False, "xla"),
    ],
)
def test_cudnn_takes_whole_sequences_in_bfloat16(
    monkeypatch, platform, capability, dtype, head_dim, masked, expected
):
    """Which implementation is asked for; cuDNN itself runs on GPUs alone."""
    asked = []
    x = jnp.zeros((1, 2, 1, head_dim), dtype)
    visible = jnp.ones((2, 2), bool) if masked else None
    device = types.SimpleNamespace(
        client=types.SimpleNamespace(platform_version=platform), compute_capability=capability
    )
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu" if platform else "cpu")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    attention = lambda *_, implementation, **__: asked.append(implementation)  # noqa: E731
    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    attend(x, x, x, visible, causal=not masked)
    assert asked == [expected]
