"""Tests of bar_jax/bases/energy.py, against projections of the data themselves."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from bar_jax.bases import Basis, kinds_to_start_from
from bar_jax.bases.energy import energy_area, pca_energy, prefix_energy, second_moment

GRID, TOKENS = (4, 4), 16


def matrix(kind, grid, second_moment=None, **options):
    """A of a fixed kind."""
    native = np.arange(grid[0] * grid[1])
    return Basis(kind, **options).matrix(grid, native, second_moment)


@pytest.fixture(scope="module")
def data() -> np.ndarray:
    """Vectors of tokens [n, 16] with structure: neighbours are alike."""
    rng = np.random.default_rng(0)
    smooth = rng.standard_normal((60, 4, 4)).cumsum(1).cumsum(2) + 0.5
    return smooth.reshape(60, TOKENS)


@pytest.fixture(scope="module")
def moments(data) -> np.ndarray:
    return data.T @ data / len(data)


def _by_projection(A: np.ndarray, data: np.ndarray) -> list[float]:
    """Share of the data's energy in the span of each prefix: least squares on its rows."""
    shares = []
    for k in range(1, len(A) + 1):
        weights = np.linalg.lstsq(A[:k].T, data.T, rcond=1e-10)[0]
        shares.append(np.sum((A[:k].T @ weights) ** 2) / np.sum(data**2))
    return shares


def test_second_moment_adds_up_over_batches():
    x = np.random.default_rng(0).standard_normal((7, 5, 3)).astype(np.float32)
    parts = [second_moment(part) for part in (x[:3], x[3:])]
    total, count = (sum(values) for values in zip(*parts, strict=True))
    vectors = x.transpose(0, 2, 1).reshape(-1, 5).astype(np.float64)
    assert count == len(vectors) == 21
    assert_allclose(total, vectors.T @ vectors, atol=1e-4)


def test_second_moment_of_low_precision_is_summed_in_float32():
    x = jax.numpy.full((101, 2, 7), 1.0, jax.numpy.bfloat16)
    np.testing.assert_array_equal(second_moment(x)[0], np.full((2, 2), 707, np.float32))


@pytest.mark.parametrize("kind", kinds_to_start_from())
def test_every_basis(kind, data, moments):
    """Among them overcomplete ones, ones that are not orthogonal, and fewer rows than tokens."""
    A = matrix(kind, GRID, second_moment=moments)
    assert_allclose(prefix_energy(A, moments), _by_projection(A, data), atol=1e-9)


def test_rows_that_depend_on_earlier_ones_add_nothing(data, moments):
    """A repeated row, a combination and a row of zeros; what follows is counted in full.

    In float32, where a combination is one only up to rounding.
    """
    rows = np.random.default_rng(0).standard_normal((4, TOKENS))
    A = np.stack([rows[0], 2 * rows[0], rows[1], rows[0] / 3 - rows[1], 0 * rows[0], *rows[2:]])
    found = prefix_energy(A.astype(np.float32), moments)
    assert_allclose(found, _by_projection(A, data), atol=1e-6)
    np.testing.assert_array_equal(np.diff(found) > 0, [False, True, False, False, True, True])


def test_scale_of_rows_does_not_matter(moments):
    A = matrix("random_orthogonal", GRID)
    scaled = A * np.geomspace(1e-3, 1e3, TOKENS)[:, None]
    assert_allclose(prefix_energy(scaled, 5 * moments), prefix_energy(A, moments), atol=1e-12)


def test_a_nearly_dependent_row_counts(moments):
    """Rows 1e-4 apart span a plane: the second adds what is orthogonal to the first."""
    first, second = matrix("random_orthogonal", GRID)[:2]
    found = prefix_energy(np.stack([first, first + 1e-4 * second]), moments)
    assert_allclose(found, prefix_energy(np.stack([first, second]), moments), atol=1e-9)


@pytest.mark.parametrize("rows", [1, 16, 21])
def test_pca_energy(data, moments, rows):
    """Singular values of the data; more rows than tokens have nothing left to hold."""
    share = np.cumsum(np.linalg.svd(data, compute_uv=False) ** 2) / np.sum(data**2)
    expected = np.append(share, np.ones(5))[:rows]
    assert_allclose(pca_energy(moments, moments, rows), expected, atol=1e-12)


def test_no_basis_holds_more_than_pca(moments):
    for kind in kinds_to_start_from():
        curve = prefix_energy(matrix(kind, GRID, second_moment=moments), moments)
        best = pca_energy(moments, moments, len(curve))
        if kind in ("pca", "compact"):
            assert_allclose(curve, best, rtol=1e-12)
        else:
            assert np.all(curve <= best + 1e-12) and np.max(best - curve) > 1e-3


def test_components_of_other_tokens_hold_less(moments):
    other = np.diag(np.arange(16, 0, -1.0))
    assert np.max(pca_energy(moments, other, 16) - pca_energy(other, other, 16)) < 1e-12
    assert np.min(pca_energy(moments, other, 16) - pca_energy(other, other, 16)) < -1e-3


def test_coarse_to_fine_holds_more_than_raster(moments):
    """On images whose neighbours are alike."""
    area = {kind: energy_area(prefix_energy(matrix(kind, GRID), moments)) for kind in
            ("raster", "haar", "frequency")}  # fmt: skip
    assert area["raster"] < area["haar"] < area["frequency"] < 1


def test_area_by_hand():
    """Tokens of energy 3 and 1: raster holds 3/4, then all; the other way round 1/4, then all."""
    moments = np.diag([3.0, 1.0])
    assert energy_area(prefix_energy(np.eye(2), moments)) == pytest.approx(0.875)
    assert energy_area(prefix_energy(np.eye(2)[::-1], moments)) == pytest.approx(0.625)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_no_energy(value):
    with pytest.raises(ValueError, match=f"energy is {value}"):
        prefix_energy(np.eye(2), np.full((2, 2), value))
