"""Tests of bar_jax/heads/logits.py."""

import jax
import jax.numpy as jnp
import numpy as np

from bar_jax.heads.logits import bit_cross_entropy, guided, gumbel


def test_cross_entropy_is_minus_log_softmax():
    logits = np.random.default_rng(0).normal(0, 3, (4, 5, 2))
    bits = np.random.default_rng(1).integers(0, 2, (4, 5))
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(softmax, bits[..., None], -1)[..., 0])
    np.testing.assert_allclose(bit_cross_entropy(logits, bits), expected, rtol=1e-5)


def test_cross_entropy_stays_finite():
    logits = jnp.array([[0.0, 1e4], [1e4, 0.0]])
    value, grad = jax.value_and_grad(
        lambda logits: bit_cross_entropy(logits, jnp.array([0, 0])).sum()
    )(logits)
    assert value == 1e4 and np.all(np.isfinite(grad))


def test_guidance_is_unconditional_plus_scale_times_the_difference():
    """Conditional logits come first: 1 + 3 (2 - 1) = 4."""
    logits = jnp.concatenate([jnp.full((2, 4), 2.0), jnp.full((2, 4), 1.0)])
    np.testing.assert_allclose(guided(logits, 3.0), np.full((2, 4), 4.0))


def test_without_guidance_logits_are_as_they_are():
    logits = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(guided(logits, None), logits)


def test_gumbel_is_minus_log_minus_log():
    uniform = np.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(gumbel(uniform), -np.log(-np.log(uniform)), rtol=1e-6)


def test_gumbel_is_finite_at_the_ends():
    assert np.all(np.isfinite(gumbel(jnp.array([0.0, 1 - 2**-24, 1.0]))))
