"""Tests of bar_jax/bases/objectives.py: closed forms against float64 loops, and what they imply."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from bar_jax.bases.energy import pca_energy, prefix_energy
from bar_jax.bases.matrices import principal_components, random_orthogonal
from bar_jax.bases.objectives import regularizer, residual
from bar_jax.bases.transform import forward


def _case(rows: int, tokens: int, draws: int = 2, seed: int = 0) -> tuple[np.ndarray, ...]:
    """x [3, N, 2], yhat [R, 3, N', 2] about a tenth off y, A [N', N], float64."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((rows, tokens)) / np.sqrt(tokens)
    x = rng.standard_normal((3, tokens, 2))
    y = np.einsum("kn,bnd->bkd", A, x)
    return x, y + 0.1 * rng.standard_normal((draws, *y.shape)), A


def _naive(x, clean, A) -> np.ndarray:
    """Equation 10 prefix by prefix, [R, B] float64."""
    draws, batch, rows, channels = clean.shape
    total = np.zeros((draws, batch))
    for r in range(draws):
        for b in range(batch):
            recovered = np.zeros((A.shape[1], channels))
            for k in range(rows):
                recovered = recovered + np.outer(A[k], clean[r, b, k])
                total[r, b] += np.sum((x[b] - recovered) ** 2)
    return total / (rows * A.shape[1] * channels)


def _slope(function, at: list[np.ndarray], which: int, direction: np.ndarray) -> float:
    """Derivative along a direction, of a function that is quadratic in each argument.

    Central differences are exact for those.
    """
    there, back = (
        function(*(a + sign * direction if i == which else a for i, a in enumerate(at)))
        for sign in (1, -1)
    )
    return (there - back) / 2


SHAPES = [(8, 8), (3, 8), (11, 8)]


@pytest.mark.parametrize("shape", SHAPES)
def test_residual_is_equation_10(shape):
    x, clean, A = _case(*shape)
    assert_allclose(residual(x, clean, A), _naive(x, clean, A), rtol=1e-5)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["x", "clean", "A"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_equation_10(shape, which):
    """Along random directions, weighed by random numbers for each draw and example."""
    at = list(_case(*shape))
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((2, 3))
    loss = lambda *arrays: jnp.sum(jnp.asarray(weight, jnp.float32) * residual(*arrays))
    grad = np.asarray(jax.grad(loss, argnums=which)(*(jnp.asarray(a, jnp.float32) for a in at)))
    assert np.abs(grad).max() > 1e-3
    for _ in range(4):
        direction = rng.standard_normal(at[which].shape)
        slope = _slope(lambda *a: np.sum(weight * _naive(*a)), at, which, direction)
        size = np.linalg.norm(grad) * np.linalg.norm(direction)
        assert abs(np.sum(grad * direction) - slope) < 1e-5 * size


def test_residual_casts_low_precision_up():
    x, clean, A = _case(8, 8)
    low = [jnp.asarray(a, jnp.bfloat16) for a in (x, clean)]
    found = residual(*low, jnp.asarray(A, jnp.float32))
    assert found.dtype == jnp.float32
    expected = _naive(*(np.asarray(a, np.float64) for a in low), A)
    assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_regularizer(shape):
    rows, tokens = shape
    A = np.random.default_rng(0).standard_normal(shape)
    expected = 0.0
    for i in range(rows):
        for j in range(rows):
            expected += (A[i] @ A[j] - (i == j)) ** 2 / rows**2
    assert_allclose(regularizer(A), expected, rtol=1e-5)


def test_propositions_1_and_2():
    """For a fixed orthogonal A the squared error on y is that on x.

    So are the losses in noise and in velocity, which are multiples of it.
    """
    rng = np.random.default_rng(0)
    A = random_orthogonal(16, 0)
    x, guess = rng.standard_normal((2, 5, 16, 4)).astype(np.float32)
    on_x = np.sum((x - guess).astype(np.float64) ** 2, axis=(1, 2))
    assert_allclose(np.sum((forward(A, x) - forward(A, guess)) ** 2, axis=(1, 2)), on_x, rtol=1e-5)


def test_transformed_noise_is_standard_normal():
    """Covariance of A eps over 20,000 draws: its entries scatter by 1/141 (variances by 1/100)."""
    noise = np.random.default_rng(0).standard_normal((200, 8, 100)).astype(np.float32)
    moved = np.asarray(forward(random_orthogonal(8, 0), noise), np.float64)
    covariance = np.einsum("bkd,bld->kl", moved, moved) / 20_000
    assert_allclose(covariance, np.eye(8), atol=0.05)
    assert_allclose(moved.mean((0, 2)), 0, atol=0.04)


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    """Tokens whose principal components are far apart and not the axes, [64, 8, 2] float32."""
    rng = np.random.default_rng(0)
    data = rng.standard_normal((64, 8, 2)) * np.geomspace(2, 0.4, 8)[:, None]
    return np.einsum("kn,bkd->bnd", random_orthogonal(8, 1), data).astype(np.float32)


def _perfect(A, x) -> jax.Array:
    """The objective of a predictor that is always right."""
    return jnp.mean(residual(x, forward(A, x)[None], A))


def test_no_orthogonal_basis_beats_pca(tokens):
    moments = np.einsum("bnd,bmd->nm", tokens, tokens, dtype=np.float64) / 128
    pca = principal_components(moments)
    # The energy that prefixes leave: sum over k of the trace outside the first k components.
    values = np.linalg.svd(tokens.transpose(0, 2, 1).reshape(-1, 8), compute_uv=False) ** 2 / 128
    least = np.sum(values * np.arange(8)) / 64
    assert_allclose(_perfect(pca, tokens), least, rtol=1e-5)
    others = [_perfect(random_orthogonal(8, seed), tokens) for seed in range(50)]
    swapped = _perfect(pca[[1, 0, *range(2, 8)]], tokens)
    assert min([*others, swapped]) > 1.01 * least


def test_gradient_descent_finds_pca(tokens):
    """From a random orthogonal matrix, with a QR after every step; up to the rows' signs."""
    moments = np.einsum("bnd,bmd->nm", tokens, tokens, dtype=np.float64) / 128

    @jax.jit
    def step(A, x):
        moved, r = jnp.linalg.qr((A - 2 * jax.grad(_perfect)(A, x)).T)
        return jnp.sign(jnp.diag(r))[:, None] * moved.T

    A = jnp.asarray(random_orthogonal(8, 2), jnp.float32)
    start = prefix_energy(A, moments)
    for _ in range(2000):
        A = step(A, tokens)
    best = pca_energy(moments, moments, 8)
    assert np.max(best - start) > 0.2
    assert_allclose(prefix_energy(A, moments), best, atol=1e-4)
    assert_allclose(np.abs(A @ principal_components(moments).T), np.eye(8), atol=0.02)
