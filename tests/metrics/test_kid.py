"""Tests of bar_jax/metrics/kid.py."""

import numpy as np
import pytest

from bar_jax.metrics.kid import kid
from bar_jax.runtime.errors import InputError


@pytest.fixture
def sets():
    rng = np.random.default_rng(0)
    return rng.normal(size=(9, 4)), rng.normal(size=(9, 4)) + 0.5


def _naive(x, y):
    """Squared MMD, pair by pair."""
    kernel = lambda a, b: (a @ b / len(a) + 1) ** 3
    within = lambda z: np.mean(
        [kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
    )
    return within(x) + within(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_one_block_pair_by_pair(sets):
    found = kid(*sets)
    assert found == (pytest.approx(_naive(*sets), rel=1e-12), 0.0)


def test_blocks_are_drawn_without_replacement(sets):
    """Every block of 8 of 9 leaves out one image of each set."""
    without = [
        _naive(np.delete(sets[0], i, 0), np.delete(sets[1], j, 0))
        for i in range(9)
        for j in range(9)
    ]
    for seed in range(3):
        mean, deviation = kid(*sets, blocks=1, block_size=8, seed=seed)
        assert np.min(np.abs(np.asarray(without) - mean)) < 1e-12 and deviation == 0


def test_mean_and_deviation_over_blocks(sets):
    """Of two blocks, one of which is that of a single block."""
    first = kid(*sets, blocks=1, block_size=5)[0]
    mean, deviation = kid(*sets, blocks=2, block_size=5)
    assert abs(first - mean) == pytest.approx(deviation, rel=1e-9)


def test_blocks_shrink_to_the_smaller_set(sets):
    samples, reference = sets
    found = kid(samples[:4], reference, blocks=3)
    assert found == kid(samples[:4], reference, blocks=3, block_size=4)


def test_order_does_not_matter_where_a_block_holds_both_sets(sets):
    samples, reference = sets
    assert kid(samples[::-1], reference) == pytest.approx(kid(samples, reference), rel=1e-12)


def test_unbiased():
    """The mean over many pairs of sets of one distribution is 0, within its standard error."""
    rng = np.random.default_rng(0)
    found = [kid(rng.normal(size=(6, 3)), rng.normal(size=(6, 3)))[0] for _ in range(2000)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))


def test_features_are_taken_in_float64(sets):
    narrow = [features.astype(np.float32) for features in sets]
    wide = [features.astype(np.float64) for features in narrow]
    assert kid(*narrow, blocks=2, block_size=5) == kid(*wide, blocks=2, block_size=5)


@pytest.mark.parametrize(
    "samples, reference, found",
    [((3, 4), (3, 5), "features of 4 and 5"), ((1, 4), (3, 4), "1 and 3 images")],
)
def test_sets_that_cannot_be_compared_are_refused(samples, reference, found):
    with pytest.raises(InputError, match=found):
        kid(np.zeros(samples), np.zeros(reference))


def test_features_that_are_not_finite_are_refused(sets):
    sets[1][2, 0] = np.inf
    with pytest.raises(InputError, match="1 of 9 images"):
        kid(*sets)
