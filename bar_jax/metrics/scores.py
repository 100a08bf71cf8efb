"""From features of images to numbers: which features a metric is made of, and the metric."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from bar_jax.errors import InputError
from bar_jax.metrics.classifier import class_accuracy
from bar_jax.metrics.features import Features
from bar_jax.metrics.frechet import frechet_distance
from bar_jax.metrics.inception_score import inception_score
from bar_jax.metrics.kid import kid
from bar_jax.metrics.moments import Gaussian, gaussian
from bar_jax.metrics.precision_recall import precision_recall


class Need(NamedTuple):
    """What a metric is made of.

    Attributes:
      network: whose outputs it reads.
      moments, rows: the outputs of which these are needed.
      of_reference: whether of the reference too.
      labels: whether the samples must have labels.
    """

    network: str
    moments: str = ""
    rows: str = ""
    of_reference: bool = True
    labels: bool = False


NEEDS = {
    "fid": Need("inception", moments="inception/pool"),
    "sfid": Need("inception", moments="inception/spatial"),
    "inception_score": Need("inception", rows="inception/logits", of_reference=False),
    "precision_recall": Need("inception", rows="inception/pool"),
    "kid": Need("inception", rows="inception/pool"),
    "fd_dinov2": Need("dinov2_l14", moments="dinov2_l14/class_token"),
    "clip_score": Need("clip_l14", rows="clip_l14/image", of_reference=False, labels=True),
    "class_accuracy": Need("classifier", rows="classifier/logits", of_reference=False, labels=True),
    "classifier_fid": Need("classifier", moments="classifier/features"),
}
FRECHET = ("fid", "sfid", "fd_dinov2", "classifier_fid")
# The names of all numbers.
NUMBERS = (
    *(metric for metric in NEEDS if metric != "precision_recall"),
    *("precision", "recall", "inception_score_std", "kid_std"),
)


class Reference(NamedTuple):
    """What samples are compared with.

    Attributes:
      name: in words: a file, or a split of a data set.
      settings: what the numbers depend on, for the summary.
      gaussians: by output.
      rows: by output, float32 [M, D].
      missing: metric -> why it cannot be had of this.
    """

    name: str
    settings: dict[str, object]
    gaussians: dict[str, Gaussian]
    rows: dict[str, np.ndarray]
    missing: dict[str, str]


def needs_reference(metric: str) -> bool:
    """Whether a metric compares with a reference."""
    return NEEDS[metric].of_reference


def needs_labels(metrics: Iterable[str]) -> bool:
    """Whether some of these metrics need samples with labels."""
    return any(NEEDS[metric].labels for metric in metrics)


def networks_of(metrics: Iterable[str]) -> tuple[str, ...]:
    """The networks that metrics need, each once."""
    return tuple(dict.fromkeys(NEEDS[metric].network for metric in metrics))


def outputs_of(metrics: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What metrics need of the samples' features: outputs for `moments` and for `rows`."""
    needs = [NEEDS[metric] for metric in metrics]
    return {
        kind: tuple(dict.fromkeys(getattr(need, kind) for need in needs if getattr(need, kind)))
        for kind in ("moments", "rows")
    }


def omitted(metrics: Iterable[str], unlabelled: str, reference: Reference | None) -> dict[str, str]:
    """Metrics that cannot be had of these samples and this reference, with the reason.

    Args:
      unlabelled: why the samples have no labels; "" if they have.
    """
    reasons = {}
    for metric in metrics:
        need = NEEDS[metric]
        if need.labels and unlabelled:
            reasons[metric] = unlabelled
        elif need.of_reference and metric in reference.missing:
            reasons[metric] = reference.missing[metric]
    return reasons


def compute(
    metrics: Iterable[str],
    samples: Features,
    reference: Reference | None,
    class_texts: np.ndarray | None = None,
) -> dict[str, float]:
    """The numbers of metrics, by name.

    Args:
      samples: with the moments and rows that `outputs_of` names.
      reference: None if no metric needs one.
      class_texts: [C, D] CLIP's features of a text for each class.

    Raises:
      InputError: fewer than 2 images, features that are not finite or of another size than the
        reference's.
    """
    found: dict[str, float] = {}
    for metric in metrics:
        need = NEEDS[metric]
        if metric in FRECHET:
            own = gaussian(samples.moments[need.moments])
            found[metric] = _frechet(metric, own, reference, need.moments)
        elif metric == "inception_score":
            found[metric], found["inception_score_std"] = inception_score(samples.rows[need.rows])
        elif metric == "precision_recall":
            both = reference.rows[need.rows], samples.rows[need.rows]
            found["precision"], found["recall"] = precision_recall(*both)
        elif metric == "kid":
            both = samples.rows[need.rows], reference.rows[need.rows]
            found[metric], found["kid_std"] = kid(*both)
        elif metric == "clip_score":
            found[metric] = clip_score(samples.rows[need.rows], class_texts, samples.labels)
        elif metric == "class_accuracy":
            found[metric] = class_accuracy(samples.rows[need.rows], samples.labels)
    return found


def clip_score(images: np.ndarray, texts: np.ndarray, labels: np.ndarray) -> float:
    """Mean cosine of an image's features and those of the text of its class.

    Args:
      images: [N, D].
      texts: [C, D], of each class.
      labels: [N].
    """
    unit = lambda x: x / np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True)
    return float(np.mean(np.sum(unit(images) * unit(texts)[labels], axis=-1)))


def _frechet(metric: str, own: Gaussian, reference: Reference, output: str) -> float:
    other = reference.gaussians[output]
    if own.mean.shape != other.mean.shape:
        found = f"statistics of {len(other.mean)} features"
        raise InputError(reference.name, found, f"{len(own.mean)}, those that {metric} is made of")
    return frechet_distance(own, other)


def flat(found: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Numbers under their names in summary.json."""
    return {f"{prefix}_{name}": value for name, value in found.items()}
