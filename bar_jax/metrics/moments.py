"""Mean and covariance of features, streamed: float64 sums that batches and processes add to."""

from typing import NamedTuple

import numpy as np

from bar_jax.runtime.errors import InputError

BLOCK = 4096  # images whose features are in float64 at a time


class Moments(NamedTuple):
    """Sums over the features of some images.

    Attributes:
      count: of images.
      sum: of their features, [D] float64.
      outer: of the outer products of a feature vector with itself, [D, D] float64.
    """

    count: int
    sum: np.ndarray
    outer: np.ndarray


class Gaussian(NamedTuple):
    """The normal distribution with the features' mean and covariance.

    Attributes:
      mean: [D] float64.
      covariance: [D, D] float64; of a sample the unbiased one, divided by N - 1.
    """

    mean: np.ndarray
    covariance: np.ndarray


def zero_moments(size: int) -> Moments:
    """The moments of no images, of features of `size` numbers."""
    return Moments(0, np.zeros(size), np.zeros((size, size)))


def add(moments: Moments, features: np.ndarray, mask: np.ndarray | None = None) -> Moments:
    """The moments with some more images.

    Reads and writes [D, D] numbers whatever B is: a batch of hundreds costs little more than one.

    Args:
      features: [B, D] of any float type.
      mask: [B] bool, False for rows that only pad the batch; None counts all rows.

    Raises:
      InputError: if features of images that count are not finite.
    """
    features = np.asarray(features)
    if mask is not None:
        features = features[np.asarray(mask)]
    check_finite(features)
    if not len(features):
        return moments
    total, outer = moments.sum, moments.outer
    for first in range(0, len(features), BLOCK):
        block = features[first : first + BLOCK].astype(np.float64)
        total = total + block.sum(0)
        outer = outer + block.T @ block  # one half is computed: numpy calls BLAS's syrk
    return Moments(moments.count + len(features), total, outer)


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of two sets of images as one: of two processes, or of two files."""
    return Moments(a.count + b.count, a.sum + b.sum, a.outer + b.outer)


def gaussian(moments: Moments) -> Gaussian:
    """Mean and unbiased covariance.

    Raises:
      InputError: if there are fewer than 2 images.
    """
    count = moments.count
    if count < 2:
        raise InputError("statistics of features", f"{count} images", "at least 2")
    mean = moments.sum / count
    return Gaussian(mean, (moments.outer - count * np.outer(mean, mean)) / (count - 1))


def check_finite(features: np.ndarray) -> None:
    """Refuses features [N, D] of which some are NaN or infinite.

    Raises:
      InputError: naming how many images they are of.
    """
    bad = int(np.sum(~np.isfinite(features).all(axis=1)))
    if bad:
        found = f"NaN or infinity for {bad} of {len(features)} images"
        raise InputError("features", found, "finite numbers")
