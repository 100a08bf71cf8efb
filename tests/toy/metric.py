"""A toy metric, of a network of its own: how light the samples are."""

import jax.numpy as jnp
import numpy as np

from bar_jax.metrics.features import FeatureNetwork
from bar_jax.metrics.kind import MetricKind


def _load(config, mesh) -> FeatureNetwork:
    del config, mesh
    mean = lambda params, images: {"mean": jnp.mean(images.astype(jnp.float32), axis=(1, 2))}
    return FeatureNetwork("colour", mean, {}, weights="none", resize="not at all")


KIND = MetricKind(
    compute=lambda seen: (np.mean(seen.samples),),
    numbers=("lightness",),
    rows="colour/mean",
    load=_load,
)
