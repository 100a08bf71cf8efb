"""Precision and recall: do samples look real, and are all kinds of real images among them?"""

import jax
import jax.numpy as jnp
import numpy as np

from bar_jax.metrics.kind import MetricKind, Seen, counted
from bar_jax.metrics.moments import check_finite
from bar_jax.runtime.errors import InputError

NEIGHBOURS = 3  # k of the published numbers
PUBLISHED = (50_000, 10_000)  # samples and reference images that these are of

# Some images' features [B, D] and the squares of their lengths [B], both float32 on the device.
# Rows that pad a block are infinitely long: nothing is near them.
_Block = tuple[jax.Array, jax.Array]


def precision_recall(
    reference: np.ndarray, samples: np.ndarray, k: int = NEIGHBOURS, block: int = 4096
) -> tuple[float, float]:
    """Fraction of samples among real images, and of real images among samples.

    A set of images covers the balls around each of them that reach to its k-th nearest neighbour in
    the set. Precision is the fraction of samples that the reference covers, recall that of the
    reference that the samples cover. Both depend on the numbers of images: the published ones are
    of 10,000 reference images and 50,000 samples, of the pool features of Inception, with k = 3.

    Distances are computed on the device in float32 (the ADM evaluator takes float16 where that does
    not overflow), of features less the reference's mean, which leaves more of their digits. Memory
    holds both sets, a float32 copy of them, and a few arrays [block, block].

    Source: Kynkaanniemi et al. 2019; Dhariwal & Nichol 2021 (ADM).

    Args:
      reference: [M, D].
      samples: [N, D].
      block: images of a set whose distances are computed at a time; the result does not depend
        on it.

    Returns:
      Precision and recall.

    Raises:
      InputError: if a set has k images or fewer, sizes of features differ, or features are not
        finite.
    """
    if reference.shape[1] != samples.shape[1]:
        found = f"features of {reference.shape[1]} and {samples.shape[1]}"
        raise InputError("precision and recall", found, "one size")
    if min(len(reference), len(samples)) <= k:
        found = f"{len(reference)} reference images and {len(samples)} samples"
        raise InputError("precision and recall", found, f"more than k = {k} of each")
    check_finite(reference)
    check_finite(samples)
    mean = reference.mean(axis=0, dtype=np.float64)
    real, generated = (_blocks(features, mean, block) for features in (reference, samples))
    real_radii, generated_radii = _radii(real, k), _radii(generated, k)
    precise = [jnp.zeros(len(x), bool) for x, _ in generated]
    recalled = [jnp.zeros(len(x), bool) for x, _ in real]
    for i, (a, a_radii) in enumerate(zip(generated, generated_radii, strict=True)):
        for j, (b, b_radii) in enumerate(zip(real, real_radii, strict=True)):
            in_real, in_generated = _covered(a, a_radii, b, b_radii)
            precise[i] |= in_real
            recalled[j] |= in_generated
    fraction = lambda parts, count: float(np.concatenate(parts)[:count].mean())
    return fraction(precise, len(samples)), fraction(recalled, len(reference))


def _blocks(features: np.ndarray, mean: np.ndarray, size: int) -> list[_Block]:
    """Features [N, D] less a mean [D], in blocks of one size."""
    size = min(size, len(features))
    blocks = []
    for first in range(0, len(features), size):
        x = features[first : first + size] - mean[None]
        padding = size - len(x)
        squares = np.pad(np.square(x).sum(1), (0, padding), constant_values=np.inf)
        x = np.pad(x, ((0, padding), (0, 0)))
        blocks.append((jnp.asarray(x, jnp.float32), jnp.asarray(squares, jnp.float32)))
    return blocks


def _radii(blocks: list[_Block], k: int) -> list[jax.Array]:
    """Squared distance of each image from its k-th neighbour in the set: [B] for each block."""
    # The k + 1 smallest squared distances so far: an image's own, which is 0, is one of them.
    nearest = [jnp.full((len(x), k + 1), jnp.inf) for x, _ in blocks]
    for i, a in enumerate(blocks):
        nearest[i] = _nearest_within(nearest[i], a)
        for j in range(i + 1, len(blocks)):
            nearest[i], nearest[j] = _nearest_across(nearest[i], nearest[j], a, blocks[j])
    # Images that pad a block cover nothing.
    return [
        jnp.where(jnp.isfinite(squares), smallest[:, k], -1.0)
        for (_, squares), smallest in zip(blocks, nearest, strict=True)
    ]


@jax.jit
def _nearest_within(nearest: jax.Array, a: _Block) -> jax.Array:
    squared = _squared_distances(a, a)
    # An image's own distance is 0, of which rounding may have left something.
    squared = jnp.where(jnp.eye(len(squared), dtype=bool), 0.0, squared)
    return _smallest(nearest, squared)


@jax.jit
def _nearest_across(
    nearest_a: jax.Array, nearest_b: jax.Array, a: _Block, b: _Block
) -> tuple[jax.Array, jax.Array]:
    squared = _squared_distances(a, b)
    return _smallest(nearest_a, squared), _smallest(nearest_b, squared.T)


def _smallest(nearest: jax.Array, squared: jax.Array) -> jax.Array:
    """The smallest of [B, k + 1] and [B, C] in every row, in rising order: [B, k + 1]."""
    count = nearest.shape[1]
    smallest = -jax.lax.top_k(-squared, min(count, squared.shape[1]))[0]
    return -jax.lax.top_k(-jnp.concatenate([nearest, smallest], axis=1), count)[0]


@jax.jit
def _covered(
    a: _Block, a_radii: jax.Array, b: _Block, b_radii: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Which images of a are in a ball of b, and the other way round: bool [A] and [B]."""
    squared = _squared_distances(a, b)
    in_b = jnp.any(squared <= b_radii[None], axis=1)
    return in_b, jnp.any(squared <= a_radii[:, None], axis=0)


def _squared_distances(a: _Block, b: _Block) -> jax.Array:
    """[A, B] float32."""
    (x, xx), (y, yy) = a, b
    products = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(xx[:, None] + yy[None] - 2 * products, 0.0)


def _compute(seen: Seen) -> tuple[float, float]:
    return precision_recall(seen.reference, seen.samples)


def _note(samples: int, compared: int, size: int | None) -> str:
    del size
    if samples >= PUBLISHED[0] and compared >= PUBLISHED[1]:
        return ""
    found = f"of {counted(samples, 'sample')} and {counted(compared, 'reference image')}"
    usual = " and ".join(f"{count:,}" for count in PUBLISHED)
    return f"{found}, not of {usual}: it depends on both"


# A ball reaches to its k-th neighbour.
KIND = MetricKind(
    _compute,
    ("precision", "recall"),
    rows="inception/pool",
    compares=True,
    fewest=NEIGHBOURS + 1,
    note=_note,
)
