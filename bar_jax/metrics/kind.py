"""What a metric says of itself, beside its code."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from bar_jax.metrics.features import FeatureNetwork
from bar_jax.metrics.moments import Gaussian


class Seen(NamedTuple):
    """What a metric is computed of.

    Attributes:
      samples: `Gaussian` of the features that it reads, or the features, float32 [N, D].
      reference: the same of the reference; None if it is not compared.
      labels: [N] of the samples.
      class_texts: CLIP's features of a text for each class [C, D]; None if no metric needs them.
    """

    samples: Gaussian | np.ndarray
    reference: Gaussian | np.ndarray | None
    labels: np.ndarray
    class_texts: np.ndarray | None = None


class MetricKind(NamedTuple):
    """A metric.

    Attributes:
      compute: Seen -> the numbers.
      numbers: their names.
      moments, rows: the output of a network, `NETWORK/OUTPUT`, of which it needs the Gaussian or
        the features of every image; one of the two.
      load: makes the network, if it is none of `feature_networks`.
      compares: whether it looks at the reference too.
      stored: under which names an .npz holds mean and covariance of the reference.
      labels: whether the samples must have labels.
      class_texts: whether it needs CLIP's features of a text for each class.
      real: whether it is measured of held-out real images too.
      fewest: images that there must be of the samples, and of the reference if that is looked at.
      classes: how many the data set must have.
      note: (samples, reference images or None, D) -> what is to be known of numbers of so few, or
        "". It stands beside all numbers but deviations, whose names end with `_std`.
      fields: what it and its like alone read of `config.evaluate`.
    """

    compute: Callable[[Seen], tuple[float, ...]]
    numbers: tuple[str, ...]
    moments: str = ""
    rows: str = ""
    load: Callable[[ConfigDict, jax.sharding.Mesh], FeatureNetwork] | None = None
    compares: bool = False
    stored: tuple[str, ...] = ()
    labels: bool = False
    class_texts: bool = False
    real: bool = False
    fewest: int = 1
    classes: int = 1
    note: Callable[[int, int | None, int | None], str] = lambda samples, compared, size: ""
    fields: tuple[str, ...] = ()

    @property
    def network(self) -> str:
        """Whose outputs it reads."""
        return (self.moments or self.rows).partition("/")[0]


def counted(count: int, what: str) -> str:
    """`1 sample`, `2 samples`."""
    return f"{count} {what}{'s' * (count != 1)}"
