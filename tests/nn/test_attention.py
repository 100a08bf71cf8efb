"""Tests of bar_jax/nn/attention.py."""

import functools
import logging
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.nn.attention import attend, padded
from bar_jax.runtime.mesh import make_mesh


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


def with_gradients(function, *qkv):
    """The output, and the gradients of its sum with random weights."""
    weights = np.random.default_rng(1).normal(size=qkv[0].shape).astype(qkv[0].dtype)

    @jax.jit
    def outputs(*qkv):
        out, backward = jax.vjp(function, *qkv)
        return out, *backward(weights)

    return outputs(*qkv)


# Queries and keys; odd ones are padded, even ones are not.
@pytest.mark.parametrize("lengths", [(5, 5), (4, 5), (5, 4), "causal"])
def test_padding_changes_neither_output_nor_gradient(qkv, lengths):
    causal = lengths == "causal"
    queries, keys = (5, 5) if causal else lengths
    query, key, value = qkv[0][:, :queries], qkv[1][:, :keys], qkv[2][:, :keys]
    filled = functools.partial(padded, causal=causal, implementation="xla")
    found = with_gradients(filled, query, key, value)
    plain = with_gradients(functools.partial(attend, causal=causal), query, key, value)
    for ours, expected in zip(found, plain, strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_lengths_are_cut_like_the_batch():
    """Of queries and of keys; JAX would leave them whole, and cuDNN has a part of the batch."""
    x = jax.ShapeDtypeStruct((8, 5, 1, 8), jnp.float32)
    with jax.set_mesh(make_mesh()):
        made = jax.make_jaxpr(functools.partial(padded, causal=False, implementation="xla"))(
            x, x, x
        )
    constrained = [e.invars[0].aval for e in made.eqns if e.primitive.name == "sharding_constraint"]
    assert [(x.shape, x.dtype) for x in constrained] == [((8,), jnp.int32)] * 2


Device = functools.partial(dict, platform="PJRT C API\ncuda 12090", compute_capability="9.0")
HOPPER = Device()
TURING = Device(compute_capability="7.5")
AMD = Device(platform="PJRT C API\nrocm 60300", compute_capability="gfx90a")
NAMELESS = dict(platform="PJRT C API\ncuda 12090")  # says nothing of its capability


@pytest.fixture
def machine(monkeypatch):
    """Pretends that there are such devices, and that XLA's attention is cuDNN's.

    Returns a function of the devices and their backend, which gives what attention is asked for:
    (implementation, length of the queries, whether key lengths are given) of every call.
    """
    plain, asked = jax.nn.dot_product_attention, []

    def attention(query, *args, implementation, **options):
        asked.append((implementation, query.shape[1], "key_value_seq_lengths" in options))
        return plain(query, *args, implementation="xla", **options)

    def pretend(*devices, backend="gpu"):
        present = []
        for fields in devices:
            fields = dict(fields)
            client = types.SimpleNamespace(platform_version=fields.pop("platform"))
            present.append(types.SimpleNamespace(client=client, **fields))
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        monkeypatch.setattr(jax, "devices", lambda *_: present)
        monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
        return asked

    return pretend


@pytest.mark.parametrize(
    "devices, backend, expected",
    [
        ([HOPPER, HOPPER], "gpu", "cudnn"),
        ([TURING], "gpu", "xla"),
        ([HOPPER, TURING], "gpu", "xla"),
        ([NAMELESS], "gpu", "xla"),
        ([AMD], "gpu", "xla"),
        ([HOPPER], "METAL", "xla"),
        ([HOPPER], "tpu", "xla"),
        ([HOPPER], "cpu", "xla"),
    ],
)
def test_cudnn_is_asked_on_ampere_and_newer(machine, devices, backend, expected):
    asked, x = machine(*devices, backend=backend), jnp.zeros((1, 2, 1, 64), jnp.bfloat16)
    jax.eval_shape(functools.partial(attend, causal=True), x, x, x)
    assert asked[-1][0] == expected


@pytest.mark.parametrize(
    "dtype, head_dim, masked, expected",
    [
        (jnp.float16, 72, False, "cudnn"),
        (jnp.float32, 64, False, "xla"),
        (jnp.bfloat16, 12, False, "xla"),
        (jnp.bfloat16, 136, False, "xla"),
        (jnp.bfloat16, 64, True, "xla"),
    ],
)
def test_cudnn_takes_whole_sequences_in_half_precision(machine, dtype, head_dim, masked, expected):
    asked, x = machine(HOPPER), jnp.zeros((1, 2, 1, head_dim), dtype)
    jax.eval_shape(attend, x, x, x, jnp.ones((2, 2), bool) if masked else None)
    assert asked[-1][0] == expected


def test_a_mesh_of_other_devices_decides(machine):
    """A program for a machine without GPUs may be made on one that has them."""
    x, mesh = jnp.zeros((1, 2, 1, 64), jnp.bfloat16), make_mesh(devices=jax.devices()[:1])
    asked = machine(HOPPER)
    with jax.set_mesh(mesh):
        jax.eval_shape(attend, x, x, x)
    assert asked[-1][0] == "xla"


def test_what_jax_refuses_is_left_to_xla(machine, monkeypatch, caplog):
    """As where cuDNN is not installed, or too old for the device."""
    asked, x = machine(HOPPER), jnp.zeros((1, 2, 1, 64), jnp.bfloat16)
    xla = jax.nn.dot_product_attention

    def refuses(*args, implementation, **options):
        if implementation == "cudnn":
            raise RuntimeError("cuDNN is not detected.")
        return xla(*args, implementation=implementation, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", refuses)
    with caplog.at_level(logging.WARNING):
        jax.eval_shape(attend, x, x, x)
    assert [implementation for implementation, *_ in asked] == ["xla"]
    assert "cuDNN is not detected." in caplog.text


@pytest.mark.parametrize("causal", [False, True])
def test_only_gradients_of_odd_lengths_are_padded(machine, qkv, causal):
    """cuDNN's forward takes 5 positions; and the gradient is that of the XLA path, in bfloat16."""
    half = [jnp.asarray(np.tile(x, 2), jnp.bfloat16) for x in qkv]  # heads of 8
    attention = functools.partial(attend, causal=causal)
    expected = with_gradients(attention, *half)
    asked = machine(HOPPER)
    jax.eval_shape(attention, *half)
    assert asked[-1] == ("cudnn", 5, False)
    found = with_gradients(attention, *half)
    assert asked[-1] == ("cudnn", 8, not causal)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2**-6)
