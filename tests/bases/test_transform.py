"""Tests of bar_jax/bases/transform.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from bar_jax.bases import Basis, kinds_to_start_from
from bar_jax.bases.transform import check_invertible, forward, inverse, inverse_matrix
from bar_jax.runtime.errors import InputError

GRID, TOKENS = (4, 4), 16


def matrix(kind, grid, second_moment=None, **options):
    """A of a fixed kind."""
    native = np.arange(grid[0] * grid[1])
    return Basis(kind, **options).matrix(grid, native, second_moment)


@pytest.fixture
def x() -> np.ndarray:
    """Tokens [3, 16, 5]."""
    return np.random.default_rng(0).standard_normal((3, TOKENS, 5)).astype(np.float32)


def _basis(kind: str) -> np.ndarray:
    moments = np.cov(np.random.default_rng(1).standard_normal((TOKENS, 40)))
    return matrix(kind, GRID, second_moment=moments)


def test_forward_mixes_tokens_of_each_channel(x):
    A = np.random.default_rng(1).standard_normal((6, TOKENS))
    expected = np.empty((3, 6, 5))
    for b in range(3):
        for c in range(5):
            expected[b, :, c] = A @ x[b, :, c].astype(np.float64)
    assert_allclose(forward(jnp.asarray(A, jnp.float32), x), expected, atol=1e-5)


def test_forward_is_float32_whatever_comes(x):
    """bfloat16 tokens are cast, not A and the products with them."""
    A = jnp.asarray(np.random.default_rng(1).standard_normal((TOKENS, TOKENS)), jnp.float32)
    low = jnp.asarray(x, jnp.bfloat16)
    y = forward(A, low)
    assert y.dtype == jnp.float32
    assert_array_equal(y, forward(A, low.astype(jnp.float32)))


@pytest.mark.parametrize("kind", [kind for kind in kinds_to_start_from() if kind != "compact"])
def test_inverse_recovers_tokens(kind, x):
    A = jnp.asarray(_basis(kind), jnp.float32)
    assert_allclose(inverse(A, forward(A, x)), x, atol=2e-5)


def test_inverse_of_a_nearly_orthogonal_basis(x):
    """Singular values from 0.5 to 1.5, as soft projection leaves them: A^T is no inverse."""
    rng = np.random.default_rng(2)
    u, _, v = np.linalg.svd(rng.standard_normal((TOKENS, TOKENS)))
    A = u * np.linspace(0.5, 1.5, TOKENS) @ v
    y = np.einsum("kn,bnd->bkd", A, x).astype(np.float32)
    low = A.astype(np.float32)
    assert_allclose(inverse(low, y), x, atol=1e-5)
    expected = np.einsum("kn,bkd->bnd", A, y)
    assert_allclose(inverse(low, y, "transpose"), expected, atol=1e-5)
    assert np.abs(expected - x).max() > 0.1


def test_overcomplete_rows_are_weighed_by_least_squares(x):
    """A sequence that no tokens have (predictions): the tokens that come nearest to it."""
    A = _basis("scales")
    y = np.random.default_rng(3).standard_normal((3, len(A), 5)).astype(np.float32)
    for b in range(3):
        expected = np.linalg.lstsq(A, y[b].astype(np.float64), rcond=None)[0]
        assert_allclose(inverse(A, y)[b], expected, atol=1e-5)


def test_compact_gives_the_projection_on_its_rows(x):
    """Rows that are no longer orthonormal: still the orthogonal projection on their span."""
    A = np.random.default_rng(4).standard_normal((4, TOKENS)) + 2 * np.eye(4, TOKENS)
    onto = np.linalg.qr(A.T)[0]
    expected = np.einsum("nk,mk,bmd->bnd", onto, onto, x)
    assert_allclose(inverse(A, forward(A, x)), expected, atol=1e-5)


@pytest.mark.parametrize("method", ["inverse", "transpose"])
@pytest.mark.parametrize("rows", [4, 16, 21])
def test_inverse_matrix_is_what_inverse_applies(method, rows):
    A = np.random.default_rng(5).standard_normal((rows, TOKENS)) + 3 * np.eye(rows, TOKENS)
    y = np.random.default_rng(6).standard_normal((2, rows, 3)).astype(np.float32)
    found = np.einsum("nk,bkd->bnd", inverse_matrix(A, method), y)
    assert_allclose(inverse(A, y, method), found, atol=1e-5)


def test_inverse_under_jit(x):
    A = jnp.asarray(_basis("haar"), jnp.float32)
    assert_allclose(jax.jit(inverse)(A, jax.jit(forward)(A, x)), x, atol=1e-5)


def test_unknown_inverse(x):
    with pytest.raises(InputError, match="model.basis.inverse: found 'adjoint'"):
        inverse(np.eye(TOKENS), x, "adjoint")


@pytest.mark.parametrize("kind", kinds_to_start_from())
def test_every_basis_is_invertible(kind):
    check_invertible(_basis(kind))


@pytest.mark.parametrize("shape", [(16, 16), (4, 16), (21, 16)])
def test_dependent_rows_are_refused(shape):
    """A rank one short of full, up to rounding of float32."""
    values = np.ones(min(shape))
    values[0] = 1e-9
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((n, n)))[0][:, : min(shape)] for n in shape)
    expected = f"model.basis: found an A of {shape[0]} x 16 with rank {min(shape) - 1}, expected"
    with pytest.raises(InputError, match=expected):
        check_invertible(u * values @ v.T)


@pytest.mark.parametrize("entry", [np.nan, np.inf])
def test_entries_that_are_not_finite_are_refused(entry):
    A = np.eye(4)
    A[1, 2] = entry
    with pytest.raises(InputError, match="a.npy: found an A with entries that are not finite"):
        check_invertible(A, "a.npy")
