"""How long metrics take: features of images, and numbers from features of random numbers."""

import functools
import time
from collections.abc import Iterator

import jax
import numpy as np

from bar_jax.metrics.features import FeatureNetwork, extract
from bar_jax.metrics.frechet import frechet_distance
from bar_jax.metrics.inception_score import inception_score
from bar_jax.metrics.kid import kid
from bar_jax.metrics.moments import add, gaussian, zero_moments
from bar_jax.metrics.precision_recall import precision_recall
from bar_jax.runtime import mesh as mesh_lib

# What the published numbers are made of.
SAMPLES, REFERENCE, FEATURES, CLASSES = 50_000, 10_000, 2048, 1008


def time_features(
    mesh: jax.sharding.Mesh,
    network: FeatureNetwork,
    output: str,
    batch_size: int,
    size: int,
    batches: int,
) -> dict[str, float]:
    """Moments of an output of a network, of batches of random images that lie in memory.

    Args:
      size: height and width of the images.
      batches: to be timed, after one that compiles.

    Returns:
      Seconds of the first batch, and images per second of the others.
    """

    def drawn(count: int) -> Iterator[dict]:
        rows = mesh_lib.batch_share(mesh).rows(batch_size)
        images = np.random.default_rng(0).integers(0, 256, (len(rows), size, size, 3), np.uint8)
        for _ in range(count):
            yield {"image": images, "index": rows, "label": rows, "mask": rows >= 0}

    seconds = []
    for count in (1, batches):
        began = time.monotonic()
        extract(mesh, [network], drawn(count), moments=[output])
        seconds.append(time.monotonic() - began)
    return {
        "first_batch_seconds": seconds[0],
        "images_per_second": batches * batch_size / seconds[1],
    }


def time_numbers(
    samples: int = SAMPLES, reference: int = REFERENCE, size: int = FEATURES
) -> dict[str, float]:
    """Seconds of each step from features to numbers.

    Args:
      samples, reference: how many images there are of each.
      size: of their features.
    """
    rng = np.random.default_rng(0)
    drawn, real = (rng.random((n, size), np.float32) for n in (samples, reference))
    zero = zero_moments(size)
    a, moments_seconds = _timed(lambda: add(zero, drawn))
    a, b = gaussian(a), gaussian(add(zero, real))
    logits = drawn[:, :CLASSES]
    steps = {
        "frechet": functools.partial(frechet_distance, a, b),
        "inception_score": functools.partial(inception_score, logits),
        "kid": functools.partial(kid, drawn, real),
        "precision_recall": functools.partial(precision_recall, real, drawn),
    }
    seconds = {f"{name}_seconds": _timed(step)[1] for name, step in steps.items()}
    return {"moments_seconds": moments_seconds, **seconds}


def _timed(step) -> tuple[object, float]:
    began = time.monotonic()
    found = step()
    return found, round(time.monotonic() - began, 2)
