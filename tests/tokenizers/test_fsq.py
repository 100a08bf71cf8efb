"""Tests of bar_jax/tokenizers/fsq.py."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.tokenizers.fsq import (
    BOUNDARY,
    Quantizer,
    bits_to_codes,
    bound,
    codes_to_bits,
    quantize,
)


def test_levels_meet_at_minus_half_log_2001():
    """atanh(0.5 / 0.5005) = log((1 + 1000/1001) / (1 - 1000/1001)) / 2 = log(2001) / 2."""
    assert BOUNDARY == pytest.approx(-math.log(2001) / 2, abs=1e-12)
    z = BOUNDARY + np.array([-5.0, -1e-3, 1e-3, 3.0, 20.0])
    np.testing.assert_array_equal(quantize(z), [-1, -1, 1, 1, 1])


def test_bound_reaches_a_little_past_the_codes():
    np.testing.assert_allclose(
        bound(jnp.array([-50.0, BOUNDARY, 0.0, 50.0])), [-1.0005, -0.5, 0.0, 0.0005], atol=1e-6
    )


def test_codes_are_exactly_plus_and_minus_one(key):
    """The straight-through sum rounded + (bounded - bounded) must leave no rounding error."""
    codes = jax.jit(quantize)(BOUNDARY + 3 * jax.random.normal(key, (1000,)))
    np.testing.assert_array_equal(np.unique(codes), [-1, 1])


def test_gradient_is_that_of_the_bounded_value():
    z = np.linspace(-9, 3, 25)
    grad = jax.jit(jax.grad(lambda z: jnp.sum(quantize(z))))(z.astype(np.float32))
    expected = 2 * 0.5005 / np.cosh(z + math.log(2001) / 2) ** 2
    np.testing.assert_allclose(grad, expected, rtol=2e-3, atol=1e-5)


def test_bits_and_codes_are_inverses():
    bits = np.array([0, 1, 1, 0], np.uint8)
    codes = bits_to_codes(bits)
    np.testing.assert_array_equal(codes, [-1, 1, 1, -1])
    back = codes_to_bits(codes)
    assert back.dtype == jnp.uint8 and codes.dtype == jnp.float32
    np.testing.assert_array_equal(back, bits)


@pytest.mark.parametrize("centered, share", [(True, 0.5), (False, 1.0)])
def test_share_of_ones_at_the_start(key, centered, share):
    """Of normalised features; the published start has no zeros at all."""
    module = Quantizer(bits=16, inputs=32, outputs=8, centered=centered)

    @jax.jit
    def share_of_ones(key):
        features = jax.random.normal(key, (4, 256, 32))
        codes, _ = module.init_with_output(key, features)
        return jnp.mean(codes_to_bits(codes), axis=(0, 1))

    np.testing.assert_allclose(share_of_ones(key), np.full(16, share), atol=0.06)


def test_starts_uniform_within_inverse_root_of_fan_in(key):
    module = Quantizer(bits=4, inputs=400, outputs=400)
    init = lambda key: module.init(key, jnp.zeros((1, 1, 400)))  # noqa: E731
    shapes = jax.eval_shape(init, key)["params"]
    assert set(shapes) == {"in_proj"}  # `expand` is reached through the tokenizer
    kernel = jax.jit(init)(key)["params"]["in_proj"]["kernel"].value
    assert np.abs(kernel).max() <= 0.05  # 400^-0.5
    assert np.std(kernel) == pytest.approx(0.05 / math.sqrt(3), rel=0.05)


def test_computes_in_float32():
    """0.001 above the boundary is below it in bfloat16."""
    params = {"in_proj": {"kernel": np.ones((1, 1), np.float32), "bias": np.array([BOUNDARY])}}
    features = jnp.full((1, 1, 1), 0.001, jnp.bfloat16)
    codes = Quantizer(1, 1, 1).apply({"params": params}, features)
    assert codes.dtype == jnp.float32 and codes.item() == 1
