"""Tests of bar_jax/metrics/moments.py."""

import numpy as np
import pytest

from bar_jax.metrics import moments as moments_lib
from bar_jax.metrics.moments import add, check_finite, gaussian, merge, zero_moments
from bar_jax.runtime.errors import InputError


@pytest.fixture
def features():
    """Correlated, with a mean that is large beside the deviation: [50, 6] float32."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)) + 10).astype(np.float32)


def _of(features, size=1000):
    """The Gaussian of features that come in batches of `size`."""
    moments = zero_moments(features.shape[1])
    for first in range(0, len(features), size):
        moments = add(moments, features[first : first + size])
    return gaussian(moments)


def _assert_same(found, expected, rtol=1e-10):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=1e-11)


def test_mean_and_unbiased_covariance_in_float64(features):
    wide = features.astype(np.float64)
    found = _of(features)
    assert found.mean.dtype == found.covariance.dtype == np.float64
    _assert_same(found, (wide.mean(0), np.cov(wide, rowvar=False)))


@pytest.mark.parametrize("size", [1, 7, 50])
def test_batches_add_up(features, size):
    _assert_same(_of(features, size), _of(features))


def test_blocks_add_up(features, monkeypatch):
    """One array is taken in blocks, the last of them smaller."""
    expected = _of(features)
    monkeypatch.setattr(moments_lib, "BLOCK", 16)
    _assert_same(_of(features), expected)


def test_order_does_not_matter(features):
    _assert_same(_of(features[::-1]), _of(features))


def test_masked_rows_do_not_count(features):
    """Whatever they hold."""
    padded = np.concatenate([features, np.full((3, 6), np.nan, np.float32)])
    mask = np.arange(53) < 50
    found = add(zero_moments(6), padded, mask)
    assert found.count == 50
    _assert_same(gaussian(found), _of(features))


def test_merged_sets_are_one_set(features):
    parts = [add(zero_moments(6), part) for part in (features[:13], features[13:])]
    _assert_same(gaussian(merge(*parts)), _of(features))


def test_adding_leaves_what_was_added_to(features):
    first = add(zero_moments(6), features[:20])
    before = first.outer.copy()
    add(first, features[20:])
    np.testing.assert_array_equal(first.outer, before)


def test_a_batch_of_padding_adds_nothing(features):
    found = add(zero_moments(6), features, np.zeros(50, bool))
    assert found.count == 0 and not found.outer.any()


@pytest.mark.parametrize("count", [0, 1])
def test_one_image_has_no_covariance(features, count):
    with pytest.raises(InputError, match=f"found {count} images, expected at least 2"):
        gaussian(add(zero_moments(6), features[:count]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_counted_and_refused(features, value):
    features[[3, 8, 8], [1, 2, 3]] = value
    with pytest.raises(InputError, match="NaN or infinity for 2 of 50 images"):
        add(zero_moments(6), features)


def test_finite_features_pass(features):
    check_finite(features)
