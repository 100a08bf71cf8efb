"""Tests of bar_jax/metrics/scores.py: how many images a number needs.

The numbers themselves are tested in tests/jobs/test_evaluate.py.
"""

import numpy as np
import pytest

from bar_jax.metrics import KINDS, scores
from bar_jax.metrics.kid import kid
from bar_jax.metrics.moments import add, gaussian, zero_moments
from bar_jax.metrics.precision_recall import precision_recall
from bar_jax.runtime.errors import InputError

FEATURES = np.random.default_rng(0).normal(size=(5, 2))
SIZES = {"inception/pool": 2048, "inception/spatial": 2023, "classifier/features": 128}
# What each metric is computed by, of two sets of a number of images.
COMPUTED = {
    "fid": lambda x: gaussian(add(zero_moments(2), x)).mean,
    "precision_recall": lambda x: precision_recall(x, x),
    "kid": lambda x: kid(x, x),
}


@pytest.mark.parametrize("metric", COMPUTED)
def test_the_fewest_images_are_those_that_the_computation_takes(metric):
    fewest = KINDS[metric].fewest
    assert np.isfinite(COMPUTED[metric](FEATURES[:fewest])).all()
    with pytest.raises(InputError):
        COMPUTED[metric](FEATURES[: fewest - 1])


@pytest.mark.parametrize(
    ("metric", "fewest"),
    [("fid", 2), ("precision_recall", 4), ("kid", 2), ("inception_score", 2), ("clip_score", 1),
     ("class_accuracy", 1), ("classifier_fid", 2)],
)  # fmt: skip
def test_with_fewer_it_is_left_out(metric, fewest):
    """Of samples, and of the reference where that is looked at."""
    assert scores.omitted([metric], fewest, {metric: fewest}) == {}
    told = scores.omitted([metric], fewest - 1, {metric: 9})
    assert told[metric].startswith(f"{fewest - 1} sample")
    if KINDS[metric].compares:
        told = scores.omitted([metric], 9, {metric: fewest - 1})
        assert told[metric].startswith(f"{fewest - 1} reference image")


@pytest.mark.parametrize(
    ("metric", "samples", "compared", "note"),
    [
        ("fid", 2049, 2049, ""),
        ("fid", 2048, None, "2048 samples for 2048 features: a singular covariance"),
        ("fid", 3000, 2048, "2048 reference images for 2048 features"),
        ("fid", 3, 1, "3 samples and 1 reference image for 2048 features"),
        ("sfid", 2024, 9999, ""),
        ("sfid", 2023, 9999, "2023 samples for 2023 features"),
        ("classifier_fid", 129, 9999, ""),
        ("kid", 1000, 1000, ""),
        ("kid", 999, 1000, "in blocks of 999 images, not of 1000"),
        ("kid", 5000, 30, "in blocks of 30 images, not of 1000"),
        ("inception_score", 50_000, None, ""),
        ("inception_score", 26, None, "of 26 images, not 5000: the score grows with the group"),
        ("inception_score", 5001, None, "the last group is of 1 image, not 5000"),
        ("precision", 50_000, 10_000, ""),
        ("precision", 49_999, 10_000, "of 49999 samples and 10000 reference images, not of 50,000"),
        ("recall", 50_000, 9_999, "of 50000 samples and 9999 reference images"),
    ],
)
def test_small_numbers_are_said(metric, samples, compared, note):
    """A line with the numbers, under the name of what it is of."""
    asked = "precision_recall" if metric in ("precision", "recall") else metric
    images = {} if compared is None else {asked: compared}
    found = scores.notes([asked], samples, images, SIZES)
    assert found[metric].startswith(note) if note else found == {}
