"""Tests of bar_jax/metrics/inception_score.py."""

import numpy as np
import pytest

from bar_jax.metrics.inception_score import inception_score
from bar_jax.runtime.errors import InputError


def _score(logits):
    """Of one group, in plain float64."""
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return np.exp(np.mean(np.sum(p * np.log(p / p.mean(0)), 1)))


@pytest.fixture
def logits():
    return 3 * np.random.default_rng(0).normal(size=(25, 7))


def test_groups_are_taken_in_order_the_last_one_smaller(logits):
    scores = [_score(logits[:10]), _score(logits[10:20]), _score(logits[20:])]
    found = inception_score(logits, group=10)
    assert found == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-12)


def test_fewer_images_than_a_group_are_one(logits):
    assert inception_score(logits) == pytest.approx((_score(logits), 0.0), rel=1e-12)


def test_certain_images_of_all_classes_score_the_number_of_classes():
    """Also where the other classes' probabilities are 0 in float64."""
    assert inception_score(1e4 * np.eye(6))[0] == pytest.approx(6, rel=1e-12)


def test_equal_images_score_1():
    assert inception_score(np.tile([[3.0, -1.0, 0.5]], (8, 1)))[0] == pytest.approx(1, rel=1e-12)


def test_a_constant_on_an_images_logits_changes_nothing(logits):
    shifted = logits + np.random.default_rng(1).normal(size=(25, 1))
    assert inception_score(shifted, 10) == pytest.approx(inception_score(logits, 10), rel=1e-12)


def test_no_images_are_refused():
    with pytest.raises(InputError, match="no images"):
        inception_score(np.zeros((0, 7)))


def test_logits_that_are_not_finite_are_refused(logits):
    logits[4, 2] = np.nan
    with pytest.raises(InputError, match="1 of 25 images"):
        inception_score(logits)
