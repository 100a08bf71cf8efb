"""Tests of bar_jax/metrics/precision_recall.py."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from bar_jax.metrics.precision_recall import precision_recall
from bar_jax.runtime.errors import InputError


def _naive(reference, samples, k=3):
    """From all distances at once, in float64."""

    def covered(points, centres):
        radii = np.sort(cdist(centres, centres), axis=1)[:, k]
        return np.mean((cdist(points, centres) <= radii).any(1))

    return covered(samples, reference), covered(reference, samples)


@pytest.fixture
def sets():
    """A reference and samples of less variety, half of them off: [40, 5] and [53, 5]."""
    rng = np.random.default_rng(0)
    samples = 0.7 * rng.normal(size=(53, 5))
    samples[::2] += 1.0
    return rng.normal(size=(40, 5)), samples


@pytest.mark.parametrize("k", [1, 3])
def test_against_all_distances_in_float64(sets, k):
    expected = _naive(*sets, k)
    assert 0.2 < min(expected) and max(expected) < 0.99  # else the test would tell little
    assert precision_recall(*sets, k=k) == pytest.approx(expected, rel=1e-7)


def test_points_on_a_line_by_hand():
    """With k = 1 the balls of 0, 1, 5 reach 1, 1, 4; those of 2, 9, 10 reach 7, 1, 1.

    Of the samples 2 and 9 are covered, for 9 is at 4 from 5; of the reference all are, by 2.
    """
    reference, samples = np.asarray([[0.0], [1.0], [5.0]]), np.asarray([[2.0], [9.0], [10.0]])
    assert precision_recall(reference, samples, k=1) == pytest.approx((2 / 3, 1.0))


@pytest.mark.parametrize("block", [2, 7, 40, 1000])
def test_blocks_change_nothing(sets, block):
    """Blocks smaller than k, ones that do not divide the sets, ones larger than both."""
    assert precision_recall(*sets, block=block) == precision_recall(*sets)


def test_order_does_not_matter(sets):
    reference, samples = sets
    assert precision_recall(reference[::-1], samples[::-1], block=16) == precision_recall(*sets)


def test_a_set_covers_itself(sets):
    assert precision_recall(sets[0], sets[0]) == (1.0, 1.0)


def test_sets_far_apart_cover_nothing(sets):
    assert precision_recall(sets[0], sets[1] + 100) == (0.0, 0.0)


def test_copies_of_images_have_balls_of_no_size():
    """Each of 4 samples stands 5 times: only what equals one of them is in a ball."""
    rng = np.random.default_rng(0)
    kept = rng.normal(size=(4, 6))
    reference = np.concatenate([kept[:2], kept[:2] + 0.1, rng.normal(size=(6, 6))])
    assert precision_recall(reference, np.repeat(kept, 5, axis=0))[1] <= 0.2


def test_features_far_from_zero_keep_their_digits(sets):
    """Their squares would leave float32 none."""
    reference, samples = (features + 1e4 for features in sets)
    assert precision_recall(reference, samples) == pytest.approx(_naive(*sets), rel=1e-7)


@pytest.mark.parametrize(
    "reference, samples, found",
    [
        ((9, 4), (9, 5), "features of 4 and 5"),
        ((9, 4), (3, 4), "9 reference images and 3 samples"),
        ((3, 4), (9, 4), "3 reference images and 9 samples"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(reference, samples, found):
    with pytest.raises(InputError, match=found):
        precision_recall(np.zeros(reference), np.zeros(samples))


def test_features_that_are_not_finite_are_refused(sets):
    sets[0][2, 0] = np.nan
    with pytest.raises(InputError, match="1 of 40 images"):
        precision_recall(*sets)
