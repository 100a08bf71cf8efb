"""The numbers of samples that are drawn while a generator is trained."""

from collections.abc import Iterable, Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from bar_jax.metrics import scores
from bar_jax.metrics.features import extract
from bar_jax.metrics.measuring import Measuring, measure
from bar_jax.runtime import preemption
from bar_jax.sampling.draw import Models, draw


def measure_generator(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    measuring: Measuring,
    models: Models,
) -> dict[str, float]:
    """The numbers of `train_generator.evaluate_samples` samples, drawn as job=sample draws them.

    They are of every class equally often, of the first ones once more where that does not come out
    even. Nothing is written.
    """
    count = config.train_generator.evaluate_samples
    labels = np.arange(count, dtype=np.int32) % config.data.num_classes
    batches = _until_told(draw(config, mesh, models, labels))
    outputs = scores.outputs_of(measuring.metrics)
    features = extract(mesh, measuring.networks, batches, **outputs)
    return measure(measuring, features) | {"evaluated_samples": float(features.count)}


def _until_told(batches: Iterable) -> Iterator:
    """Batches, unless the run is asked to stop."""
    for batch in batches:
        preemption.check("evaluation: not finished")
        yield batch
