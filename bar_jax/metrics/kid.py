"""Kernel Inception Distance: unlike FID unbiased, so that small sets can be compared."""

import numpy as np

from bar_jax.metrics.kind import MetricKind, Seen
from bar_jax.metrics.moments import check_finite
from bar_jax.runtime.errors import InputError

BLOCK = 1000  # images of each set that are compared at a time


def kid(
    samples: np.ndarray,
    reference: np.ndarray,
    blocks: int = 100,
    block_size: int = BLOCK,
    seed: int = 2020,
) -> tuple[float, float]:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3, averaged over random subsets.

    Of each set a subset is drawn without replacement for every block, with numpy's legacy generator
    and in the order in which torch-fidelity draws them: equal seeds compare equal images. Where a
    set has fewer than `block_size` images, blocks are of its size; of two sets of that size there
    is one block, all of both, and the order of images does not matter.

    Source: Binkowski et al. 2018.

    Args:
      samples: [N, D].
      reference: [M, D].

    Returns:
      Mean and standard deviation over the blocks. The mean may be below 0 for sets that are alike.

    Raises:
      InputError: if a set has fewer than 2 images, sizes of features differ, or features are not
        finite.
    """
    if samples.shape[1] != reference.shape[1]:
        found = f"features of {samples.shape[1]} and {reference.shape[1]}"
        raise InputError("KID", found, "one size")
    size = min(block_size, len(samples), len(reference))
    if size < 2:
        found = f"{len(samples)} and {len(reference)} images in blocks of {block_size}"
        raise InputError("KID", found, "at least 2")
    check_finite(samples)
    check_finite(reference)
    if size == len(samples) == len(reference):
        return _squared_mmd(samples, reference), 0.0
    random = np.random.RandomState(seed)
    drawn = lambda features: features[random.choice(len(features), size, replace=False)]
    distances = [_squared_mmd(drawn(samples), drawn(reference)) for _ in range(blocks)]
    return float(np.mean(distances)), float(np.std(distances))


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Of two [n, D]: mean kernel of pairs within x, plus within y, less twice that across."""
    n, size = x.shape
    # The means are about 1, their difference 1e-3: float64.
    x, y = x.astype(np.float64), y.astype(np.float64)
    kernel = lambda a, b: (a @ b.T / size + 1) ** 3
    of_pairs = lambda k: (np.sum(k) - np.trace(k)) / (n * (n - 1))  # without an image with itself
    return of_pairs(kernel(x, x)) + of_pairs(kernel(y, y)) - 2 * float(np.mean(kernel(x, y)))


def _compute(seen: Seen) -> tuple[float, float]:
    return kid(seen.samples, seen.reference)


def _note(samples: int, compared: int, size: int | None) -> str:
    del size
    block = min(samples, compared)
    return f"in blocks of {block} images, not of {BLOCK}" if block < BLOCK else ""


# It is of pairs in a set.
KIND = MetricKind(
    _compute, ("kid", "kid_std"), rows="inception/pool", compares=True, fewest=2, note=_note
)
