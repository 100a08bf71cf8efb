"""Tests of bar_jax/losses/prefixes.py."""

import jax
import numpy as np
import pytest

from bar_jax.bases.matrices import frequency
from bar_jax.losses import prefixes

TOKENS, BITS = 16, 3


@pytest.fixture
def z():
    return np.random.default_rng(0).normal(size=(2, TOKENS, BITS)).astype(np.float32)


def by_hand(z, coefficients, A):
    """Mean over prefixes of what they leave of an image's latents, as a share, in float64."""
    z, coefficients, A = map(np.float64, (z, coefficients, A))
    left = [z - np.einsum("kn,bkd->bnd", A[:k], coefficients[:, :k]) for k in range(1, len(A) + 1)]
    return np.mean([(rest**2).sum((1, 2)) / (z**2).sum((1, 2)) for rest in left], axis=0)


def test_is_the_share_that_prefixes_leave(z):
    A = frequency((4, 4)) + 0.1 * np.random.default_rng(1).normal(size=(TOKENS, TOKENS))
    coefficients = np.sign(np.einsum("kn,bnd->bkd", A, z)) * 0.7
    found = prefixes.residual(z, coefficients.astype(np.float32), A.astype(np.float32))
    np.testing.assert_allclose(found, by_hand(z, coefficients, A), rtol=1e-5)


def test_does_not_depend_on_the_size_of_latents(z):
    """Else an encoder could make it small by shrinking what it says."""
    A = frequency((4, 4)).astype(np.float32)
    coefficients = np.sign(np.einsum("kn,bnd->bkd", A, z))
    small = prefixes.residual(z / 100, coefficients / 100, A)
    np.testing.assert_allclose(small, prefixes.residual(z, coefficients, A), rtol=1e-5)


def test_latents_of_zero_leave_nothing(z):
    A = np.eye(TOKENS, dtype=np.float32)
    np.testing.assert_array_equal(prefixes.residual(0 * z, 0 * z, A), 0)


def test_lengths_are_uniform_from_one_to_all():
    lengths = np.asarray(prefixes.draw_lengths(jax.random.split(jax.random.key(0), 8000), 4))
    assert set(lengths) == {1, 2, 3, 4}
    # Standard deviation of a count of 2000: 39.
    np.testing.assert_allclose(np.bincount(lengths)[1:], 2000, atol=150)
