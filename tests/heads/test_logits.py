"""Tests of bar_jax/heads/logits.py."""

import jax
import jax.numpy as jnp
import numpy as np

from bar_jax.heads.logits import bit_cross_entropy, gumbel


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


def test_gumbel_is_minus_log_minus_log():
    uniform = np.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(gumbel(uniform), -np.log(-np.log(uniform)), rtol=1e-6)


def test_gumbel_is_finite_at_the_ends():
    assert np.all(np.isfinite(gumbel(jnp.array([0.0, 1 - 2**-24, 1.0]))))
