"""Tests of bar_jax/heads/bit.py."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.heads.bit import BitHead
from bar_jax.nn.decoding import decoding_params

BITS, WIDTH = 4, 5
HEAD = BitHead(BITS, WIDTH)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(WIDTH, BITS, 2)).astype(np.float32)
    return {"out_embed": {"kernel": kernel, "bias": rng.normal(size=(4, 2)).astype(np.float32)}}


def logits_of(params, z):
    """[M, n, 2] float64."""
    kernel, bias = params["out_embed"]["kernel"], params["out_embed"]["bias"]
    return np.einsum("mw,wns->mns", z.astype(np.float64), kernel) + bias


@functools.cache
def sampler(guidance):
    """(params, z, uniform, temperature) -> bits, logits."""
    return jax.jit(
        lambda params, z, uniform, temperature: HEAD.apply(
            {"params": decoding_params(params, jnp.float32)},
            *(z, guidance, temperature, (), uniform),
            method=HEAD.sample,
        )
    )


@pytest.mark.parametrize("padded", [False, True])
def test_loss_is_that_of_a_loop_over_bits(params, padded):
    rng = np.random.default_rng(1)
    z, bits = rng.normal(size=(6, WIDTH)).astype(np.float32), rng.integers(0, 2, (6, BITS))
    counted = np.array([1, 0, 1, 1, 0, 1], bool) if padded else None
    sums = jax.jit(lambda *a: HEAD.apply({"params": params}, *a, method=HEAD.loss))(
        z, bits, None, counted
    )
    out, total, right, count = logits_of(params, z), 0.0, 0, 0
    for m, i in np.ndindex(6, BITS):
        if not padded or counted[m]:
            total += np.logaddexp(*out[m, i]) - out[m, i, bits[m, i]]
            right += np.argmax(out[m, i]) == bits[m, i]
            count += 1
    expected = {
        "loss": (total, count),
        "bits_per_bit": (total / math.log(2), count),
        "bit_accuracy": (right, count),
    }
    assert sums.keys() == expected.keys()
    for name, pair in expected.items():
        np.testing.assert_allclose(sums[name], pair, rtol=1e-5, err_msg=name)


def test_temperature_zero_is_the_larger_logit(params):
    z = np.random.default_rng(2).normal(size=(6, WIDTH)).astype(np.float32)
    bits, logits = sampler(None)(params, z, jnp.full((6, *HEAD.noise_shape(())), 0.5), 0.0)
    np.testing.assert_allclose(logits, logits_of(params, z), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(bits, np.argmax(logits_of(params, z), axis=-1))
    assert bits.dtype == jnp.uint8


def test_bits_are_drawn_independently_at_the_temperature(params, key):
    """P(1) = sigmoid((l1 - l0) / tau), and no two bits know each other."""
    count, temperature = 8000, 2.0
    z = np.tile(np.random.default_rng(3).normal(size=(1, WIDTH)), (count, 1)).astype(np.float32)
    uniform = jax.random.uniform(key, (count, *HEAD.noise_shape(())))
    bits, _ = sampler(None)(params, z, uniform, temperature)
    bits, out = np.asarray(bits, np.float64), logits_of(params, z[:1])[0]
    expected = 1 / (1 + np.exp((out[:, 0] - out[:, 1]) / temperature))
    np.testing.assert_allclose(bits.mean(0), expected, atol=4 * 0.5 / math.sqrt(count))
    correlation = np.corrcoef(bits, rowvar=False)[~np.eye(BITS, dtype=bool)]
    assert np.max(np.abs(correlation)) < 4 / math.sqrt(count)


def test_guidance_acts_on_the_logits(params):
    """Conditional rows come first: u + 3 (c - u)."""
    z = np.random.default_rng(4).normal(size=(4, WIDTH)).astype(np.float32)
    _, logits = sampler(3.0)(params, z, jnp.full((2, BITS, 2), 0.5), 0.0)
    c, u = np.split(logits_of(params, z), 2)
    np.testing.assert_allclose(logits, u + 3 * (c - u), rtol=1e-4, atol=1e-5)
