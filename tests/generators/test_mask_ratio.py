"""Tests of bar_jax/generators/mask_ratio.py, against scipy."""

import jax
import numpy as np
import pytest
from scipy.stats import truncnorm

from bar_jax.generators import mask_ratio

POINTS = np.linspace(0.6, 1.05, 10)


@pytest.fixture(params=[0.7, 0.2])
def minimum(request):
    with jax.enable_x64(True):
        yield request.param


@pytest.fixture
def expected(minimum):
    return truncnorm((minimum - 1) / 0.25, 0, loc=1, scale=0.25)


def test_ppf(minimum, expected):
    uniform = np.linspace(0, 1, 9)
    np.testing.assert_allclose(mask_ratio.ppf(uniform, minimum), expected.ppf(uniform), rtol=1e-9)


@pytest.mark.parametrize("name", ["cdf", "pdf"])
def test_cdf_and_pdf(minimum, expected, name):
    found = getattr(mask_ratio, name)(POINTS, minimum)
    np.testing.assert_allclose(found, getattr(expected, name)(POINTS), rtol=1e-9, atol=1e-12)


def test_mean_and_std(minimum, expected):
    found = mask_ratio.mean_std(minimum)
    np.testing.assert_allclose(found, (expected.mean(), expected.std()), rtol=1e-9)
