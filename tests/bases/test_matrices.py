"""Tests of bar_jax/bases/matrices.py: each basis against its method done another way."""

import numpy as np
import pytest
import scipy.fft
from numpy.testing import assert_allclose, assert_array_equal

from bar_jax.bases import Basis, kinds_to_start_from
from bar_jax.bases.matrices import principal_components
from bar_jax.runtime.errors import InputError

ORTHONORMAL = [kind for kind in kinds_to_start_from() if kind not in ("scales", "low_pass")]


def matrix(kind, grid, second_moment=None, **options):
    """A of a fixed kind."""
    native = np.arange(grid[0] * grid[1])
    return Basis(kind, **options).matrix(grid, native, second_moment)


@pytest.fixture
def image() -> np.ndarray:
    """One channel of tokens, [8, 8]."""
    return np.random.default_rng(0).standard_normal((8, 8))


def _moments(tokens: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Data [n, N] with directions of different energy, and its second-moment matrix [N, N]."""
    rng = np.random.default_rng(seed)
    spread = np.geomspace(1, 0.01, tokens)
    data = rng.standard_normal((3 * tokens, tokens)) * spread @ rng.standard_normal((tokens,) * 2)
    return data, data.T @ data / len(data)


@pytest.mark.parametrize("side", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ORTHONORMAL)
def test_rows_are_orthonormal(kind, side):
    A = matrix(kind, (side, side), block=min(side, 2), second_moment=_moments(side**2)[1])
    rows = max(1, side**2 // 4) if kind == "compact" else side**2
    assert (A.shape, A.dtype) == ((rows, side**2), np.float64)
    assert_allclose(A @ A.T, np.eye(rows), atol=1e-12)


@pytest.mark.parametrize("kind, rows", [("scales", 85), ("low_pass", 64)])
def test_the_others_have_full_rank(kind, rows):
    A = matrix(kind, (8, 8))
    assert A.shape == (rows, 64)
    assert np.linalg.matrix_rank(A) == 64


@pytest.mark.parametrize("kind", ["identity", "raster"])
def test_raster_is_the_identity(kind):
    assert_array_equal(matrix(kind, (2, 3)), np.eye(6))


@pytest.mark.parametrize("kind", ["cells", "subsample"])
def test_permutations_move_tokens(kind, image):
    """By slices of the image: xAR's cells, PAR's subsamples."""
    if kind == "cells":
        parts = [image[i : i + 4, j : j + 4] for i in (0, 4) for j in (0, 4)]
    else:
        parts = [image[i::4, j::4] for i in range(4) for j in range(4)]
    expected = np.concatenate([part.reshape(-1) for part in parts])
    assert_array_equal(matrix(kind, (8, 8), block=4) @ image.reshape(-1), expected)


def test_scales_pool_the_image(image):
    """VAR: the mean of every square, by loops."""
    expected = [
        image[i : i + size, j : j + size].mean()
        for size in (8, 4, 2, 1)
        for i in range(0, 8, size)
        for j in range(0, 8, size)
    ]
    assert_allclose(matrix("scales", (8, 8)) @ image.reshape(-1), expected, atol=1e-14)


@pytest.mark.parametrize("grid", [(8, 8), (4, 6), (1, 5)])
def test_frequency_is_the_dct_by_radius(grid):
    image = np.random.default_rng(1).standard_normal(grid)
    A = matrix("frequency", grid)
    coefficients = scipy.fft.dctn(image, norm="ortho")
    # Each row is one basis function: which one, by scipy's transform of it.
    spectra = [scipy.fft.dctn(row.reshape(grid), norm="ortho") for row in A]
    places = [np.unravel_index(np.argmax(np.abs(s)), grid) for s in spectra]
    assert sorted(places) == list(np.ndindex(grid))
    assert_allclose(A @ image.reshape(-1), [coefficients[p] for p in places], atol=1e-13)
    radius = [(u / grid[0]) ** 2 + (v / grid[1]) ** 2 for u, v in places]
    assert np.diff(radius).min(initial=0) >= -1e-12
    ties = [(a, b) for i, (a, b) in enumerate(zip(places, places[1:], strict=False))
            if radius[i + 1] - radius[i] < 1e-12]  # fmt: skip
    assert all(a < b for a, b in ties)


def test_low_pass_filters_the_image(image):
    """FAR, cumulative: the frequencies up to a cut-off pass, the others are zeroed."""
    A, dct = matrix("low_pass", (8, 8)), matrix("frequency", (8, 8))
    spectrum = scipy.fft.dctn(image, norm="ortho").reshape(-1)
    order = [np.argmax(np.abs(scipy.fft.dctn(row.reshape(8, 8), norm="ortho"))) for row in dct]
    for k in (1, 2, 7, 64):
        response = scipy.fft.dctn(A[k - 1].reshape(8, 8), norm="ortho").reshape(-1)
        expected = np.isin(np.arange(64), order[:k]) / np.sqrt(k)
        assert_allclose(response, expected, atol=1e-13)
        filtered = np.isin(np.arange(64), order[:k]) * spectrum
        assert_allclose(A[k - 1] @ image.reshape(-1), filtered.sum() / np.sqrt(k), atol=1e-12)


def test_haar_by_hand():
    """4 x 4: the mean, three differences of quarters, three differences of pixels in each."""
    A = matrix("haar", (4, 4)).reshape(16, 4, 4)
    two, fall = np.ones((2, 2)), np.array([[1, -1], [-1, 1]])
    differences = [np.array([[1, -1], [1, -1]]), np.array([[1, 1], [-1, -1]]), fall]
    assert_array_equal(A[0], np.full((4, 4), 1 / 4))
    for row, signs in zip(A[1:4], differences, strict=True):
        assert_array_equal(row, np.kron(signs, two) / 4)
    for block, corner in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
        for row, signs in zip(A[4 + 3 * block : 7 + 3 * block], differences, strict=True):
            expected = np.zeros((4, 4))
            expected[corner[0] : corner[0] + 2, corner[1] : corner[1] + 2] = signs / 2
            assert_array_equal(row, expected)


def test_haar_by_repeated_differences(image):
    """The fast transform: fine differences first, then those of what is left."""
    low, levels = image, []
    while low.size > 1:
        a, b, c, d = low[::2, ::2], low[::2, 1::2], low[1::2, ::2], low[1::2, 1::2]
        details = np.stack([a - b + c - d, a + b - c - d, a - b - c + d], -1) / 2
        levels.insert(0, details.reshape(-1))
        low = (a + b + c + d) / 2
    expected = np.concatenate([low.reshape(-1), *levels])
    assert_allclose(matrix("haar", (8, 8)) @ image.reshape(-1), expected, atol=1e-13)


def test_pca_is_the_svd_of_the_data():
    data, moments = _moments(16)
    right = np.linalg.svd(data, full_matrices=False)[2]
    right *= np.sign(right[np.arange(16), np.argmax(np.abs(right), axis=1)])[:, None]
    assert_allclose(matrix("pca", (4, 4), second_moment=moments), right, atol=1e-6)


def test_sign_of_a_component_does_not_hang_on_rounding():
    """Entries of equal size: the first is positive, whichever of them rounding made the larger."""
    row = np.array([1, -1, 1, -1]) / 2
    for noise in (np.array([0, 1e-15, 0, 0]), np.array([1e-15, 0, 0, 0])):
        found = principal_components(np.outer(row + noise, row + noise))[0]
        assert_allclose(found, row, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 5, 16])
def test_compact_is_the_best_linear_reconstruction(rows):
    """Eckart and Young: no rank-M reconstruction of the data has a smaller error."""
    data, moments = _moments(16)
    A = matrix("compact", (4, 4), rows=rows, second_moment=moments)
    assert A.shape == (rows, 16)
    error = np.sum((data - data @ A.T @ A) ** 2)
    best = np.sum(np.linalg.svd(data, compute_uv=False)[rows:] ** 2)
    assert_allclose(error, best, rtol=1e-6, atol=1e-9)


def test_random_orthogonal_depends_on_the_seed_alone():
    A = matrix("random_orthogonal", (4, 4), seed=1)
    assert_array_equal(A, matrix("random_orthogonal", (4, 4), seed=1))
    assert np.abs(A - matrix("random_orthogonal", (4, 4), seed=2)).max() > 0.1


def test_random_orthogonal_is_uniform():
    """Under the Haar measure entries have mean 0; QR's own signs would favour one on the diagonal.

    400 draws of 4 entries of standard deviation 1/2: the mean of all within 4.5 sigma.
    """
    diagonals = [np.diag(matrix("random_orthogonal", (2, 2), seed=s)) for s in range(400)]
    assert abs(np.mean(diagonals)) < 4.5 * 0.5 / np.sqrt(1600)


@pytest.mark.parametrize("kind", ["scales", "haar"])
@pytest.mark.parametrize("grid", [(6, 6), (4, 8)])
def test_grids_that_do_not_halve(kind, grid):
    expected = (
        f"model.basis.kind: found '{kind}' on {grid[0]} x {grid[1]} tokens, expected a square"
    )
    with pytest.raises(InputError, match=expected):
        matrix(kind, grid)


@pytest.mark.parametrize("rows", [-1, 17])
def test_rows_out_of_range(rows):
    with pytest.raises(InputError, match=f"model.basis.rows: found {rows}, expected 1 to 16"):
        matrix("compact", (4, 4), rows=rows, second_moment=np.eye(16))


@pytest.mark.parametrize("kind", ["pca", "compact"])
def test_bases_of_tokens_refuse_the_moments_of_others(kind):
    found = (
        f"model.basis.kind: found '{kind}' with moments \\(4, 4\\), expected moments \\(16, 16\\)"
    )
    with pytest.raises(InputError, match=found):
        matrix(kind, (4, 4), np.eye(4))


@pytest.mark.parametrize("kind, rows", [("pca", 16), ("compact", 4)])
def test_bases_of_tokens_are_random_ones_without_them(kind, rows):
    assert_array_equal(matrix(kind, (4, 4)), matrix("random_orthogonal", (4, 4))[:rows])
