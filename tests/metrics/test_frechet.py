"""Tests of bar_jax/metrics/frechet.py."""

import numpy as np
import pytest
import scipy.linalg

from bar_jax.metrics.frechet import frechet_distance
from bar_jax.metrics.moments import Gaussian, add, gaussian, zero_moments
from bar_jax.runtime.errors import InputError

SIZE = 12


def _features(seed, count):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, SIZE)) @ rng.normal(size=(SIZE, SIZE)) + rng.normal(size=SIZE)


def _gaussian(features):
    return gaussian(add(zero_moments(SIZE), features))


def _commuting(seed, *variances):
    """Gaussians of the given variances in the same random directions."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    return [
        Gaussian(rng.normal(size=SIZE), (directions * np.asarray(v)) @ directions.T)
        for v in variances
    ]


def test_one_dimension_by_hand():
    """(2 - 5)^2 + (3 - 1)^2, of means 2 and 5 and deviations 3 and 1."""
    a = Gaussian(np.asarray([2.0]), np.asarray([[9.0]]))
    b = Gaussian(np.asarray([5.0]), np.asarray([[1.0]]))
    assert frechet_distance(a, b) == pytest.approx(13, rel=1e-14)


def test_against_the_root_of_the_product():
    """As pytorch-fid and the ADM evaluator write it, in float64."""
    a, b = _gaussian(_features(0, 60)), _gaussian(_features(1, 80))
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    expected = np.sum((a.mean - b.mean) ** 2)
    expected += np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_singular_covariances_by_hand():
    """Of covariances with the same directions: the deviations' squared distance, also at rank 3."""
    first = [4.0, 1.0, 0.25] + [0.0] * (SIZE - 3)
    second = [0.0, 9.0, 0.04, 1.0] + [0.0] * (SIZE - 4)
    a, b = _commuting(0, first, second)
    deviations = np.sqrt(first) - np.sqrt(second)
    expected = np.sum((a.mean - b.mean) ** 2) + np.sum(deviations**2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_fewer_images_than_features():
    """The root's trace from the images themselves, which are factors of their covariances."""
    sets = _features(0, 5), _features(1, 7)
    a, b = (_gaussian(features) for features in sets)
    centred = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in sets]
    root_trace = np.linalg.norm(centred[0] @ centred[1].T, "nuc")
    expected = np.sum((a.mean - b.mean) ** 2) + sum(np.sum(x**2) for x in centred)
    expected -= 2 * root_trace
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [5, 60])
def test_a_set_is_at_no_distance_from_itself(count):
    """In another order too: no root of what is left of rounding."""
    features = _features(0, count)
    scale = np.trace(_gaussian(features).covariance)
    shuffled = np.random.default_rng(1).permutation(features)
    assert frechet_distance(_gaussian(features), _gaussian(features)) < 1e-12 * scale
    assert frechet_distance(_gaussian(features), _gaussian(shuffled)) < 1e-12 * scale


def test_symmetric():
    a, b = _gaussian(_features(0, 60)), _gaussian(_features(1, 7))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_grows_by_the_square_of_a_shift():
    a = _gaussian(_features(0, 60))
    moved = a._replace(mean=a.mean + 3.0)
    assert frechet_distance(a, moved) == pytest.approx(9 * SIZE, rel=1e-12)


def test_sets_without_any_variance():
    """All images are one: a distance between points."""
    a = _gaussian(np.ones((4, SIZE)))
    b = _gaussian(np.zeros((4, SIZE)))
    assert frechet_distance(a, b) == pytest.approx(SIZE)


def test_sizes_that_differ_are_refused():
    small = Gaussian(np.zeros(2), np.eye(2))
    with pytest.raises(InputError, match="found features of 12 and 2"):
        frechet_distance(_gaussian(_features(0, 20)), small)


def test_statistics_that_are_not_finite_are_refused():
    a = _gaussian(_features(0, 20))
    with pytest.raises(InputError, match="NaN"):
        frechet_distance(a, a._replace(mean=np.full(SIZE, np.nan)))
