"""Tests of bar_jax/heads/linear.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.heads.linear import LinearHead, bits_to_code, code_to_bits
from bar_jax.nn.decoding import decoding_params

BITS, WIDTH = 3, 5
HEAD = LinearHead(BITS, WIDTH)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(WIDTH, 2**BITS)).astype(np.float32)
    return {"out_embed": {"kernel": kernel, "bias": rng.normal(size=8).astype(np.float32)}}


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


@pytest.mark.parametrize(
    "bits, code", [([0, 0, 0], 0), ([1, 0, 0], 4), ([0, 1, 1], 3), ([1, 1, 1], 7)]
)
def test_a_code_is_its_bits_highest_first(bits, code):
    assert bits_to_code(jnp.array(bits)) == code
    np.testing.assert_array_equal(code_to_bits(jnp.array(code), 3), bits)


def test_codes_of_18_bits_come_back():
    codes = jnp.array([0, 1, 2**17, 2**18 - 1, 123_456])
    np.testing.assert_array_equal(bits_to_code(code_to_bits(codes, 18)), codes)


@pytest.mark.parametrize("padded", [False, True])
def test_loss_is_minus_the_log_softmax_of_the_code(params, padded):
    rng = np.random.default_rng(1)
    z, codes = rng.normal(size=(6, WIDTH)).astype(np.float32), np.array([0, 7, 4, 3, 5, 5])
    bits = np.array([[c >> 2 & 1, c >> 1 & 1, c & 1] for c in codes])
    counted = np.array([1, 0, 1, 1, 0, 1], bool) if padded else np.ones(6, bool)
    sums = jax.jit(lambda *a: HEAD.apply({"params": params}, *a, method=HEAD.loss))(
        z, bits, None, counted if padded else None
    )
    logits = z.astype(np.float64) @ params["out_embed"]["kernel"] + params["out_embed"]["bias"]
    entropy = np.log(np.exp(logits).sum(-1)) - logits[np.arange(6), codes]
    wrong = [bin(a ^ b).count("1") for a, b in zip(np.argmax(logits, -1), codes, strict=True)]
    count = counted.sum()
    expected = {
        "loss": (entropy[counted].sum(), count),
        "bits_per_bit": (entropy[counted].sum() / np.log(2), 3 * count),
        "bit_accuracy": (3 * count - np.array(wrong)[counted].sum(), 3 * count),
    }
    assert sums.keys() == expected.keys()
    for name, pair in expected.items():
        np.testing.assert_allclose(sums[name], pair, rtol=1e-5, err_msg=name)


def test_temperature_zero_is_the_likeliest_code(params):
    z = np.random.default_rng(2).normal(size=(4, WIDTH)).astype(np.float32)
    bits, logits = sampler(None)(params, z, jnp.full((4, 8), 0.5), 0.0)
    np.testing.assert_allclose(
        logits, z @ params["out_embed"]["kernel"] + params["out_embed"]["bias"][None], rtol=1e-5
    )
    np.testing.assert_array_equal(bits_to_code(bits), np.argmax(logits, axis=-1))


def test_codes_are_drawn_from_the_softmax_at_the_temperature(params, key):
    """Chi-square of 8000 draws, 7 degrees of freedom, at the 0.1 % level."""
    count, temperature = 8000, 2.0
    z = np.tile(np.random.default_rng(3).normal(size=(1, WIDTH)), (count, 1)).astype(np.float32)
    uniform = jax.random.uniform(key, (count, *HEAD.noise_shape(())))
    bits, logits = sampler(None)(params, z, uniform, temperature)
    probability = np.asarray(jax.nn.softmax(logits[0] / temperature), np.float64)
    found = np.bincount(bits_to_code(bits), minlength=8)
    assert np.sum((found - count * probability) ** 2 / (count * probability)) < 24.3


def test_guidance_acts_on_the_logits(params):
    """Conditional rows come first: u + 3 (c - u)."""
    z = np.random.default_rng(4).normal(size=(4, WIDTH)).astype(np.float32)
    _, logits = sampler(3.0)(params, z, jnp.full((2, 8), 0.5), 0.0)
    c, u = np.split(z @ params["out_embed"]["kernel"] + params["out_embed"]["bias"][None], 2)
    np.testing.assert_allclose(logits, u + 3 * (c - u), rtol=1e-4, atol=1e-5)
