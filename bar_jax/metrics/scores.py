"""From features of images to numbers: which features a metric is made of, and the metric."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from bar_jax.metrics.classifier import class_accuracy
from bar_jax.metrics.features import Features
from bar_jax.metrics.frechet import frechet_distance
from bar_jax.metrics.inception_score import GROUP, inception_score
from bar_jax.metrics.kid import BLOCK, kid
from bar_jax.metrics.moments import Gaussian, gaussian
from bar_jax.metrics.precision_recall import NEIGHBOURS, precision_recall
from bar_jax.runtime.errors import InputError


class Need(NamedTuple):
    """What a metric is made of.

    Attributes:
      network: whose outputs it reads.
      moments, rows: the outputs of which these are needed.
      of_reference: whether of the reference too.
      labels: whether the samples must have labels.
      fewest: images that there must be of the samples, and of the reference if that is looked at.
    """

    network: str
    moments: str = ""
    rows: str = ""
    of_reference: bool = True
    labels: bool = False
    fewest: int = 1


# A covariance is one of two images, a ball reaches to its k-th neighbour, KID is of pairs in a set,
# and the Inception Score of one image is 1, whatever it shows.
NEEDS = {
    "fid": Need("inception", moments="inception/pool", fewest=2),
    "sfid": Need("inception", moments="inception/spatial", fewest=2),
    "inception_score": Need("inception", rows="inception/logits", of_reference=False, fewest=2),
    "precision_recall": Need("inception", rows="inception/pool", fewest=NEIGHBOURS + 1),
    "kid": Need("inception", rows="inception/pool", fewest=2),
    "fd_dinov2": Need("dinov2_l14", moments="dinov2_l14/class_token", fewest=2),
    "clip_score": Need("clip_l14", rows="clip_l14/image", of_reference=False, labels=True),
    "class_accuracy": Need("classifier", rows="classifier/logits", of_reference=False, labels=True),
    "classifier_fid": Need("classifier", moments="classifier/features", fewest=2),
}
PUBLISHED = (50_000, 10_000)  # samples and reference images of published precision and recall
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
    """

    name: str
    settings: dict[str, object]
    gaussians: dict[str, Gaussian]
    rows: dict[str, np.ndarray]


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


def omitted(
    metrics: Iterable[str],
    samples: int,
    reference_images: Mapping[str, int],
    unlabelled: str = "",
    missing: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """Metrics that cannot be had, with the reason.

    Args:
      samples: how many there are.
      reference_images: metric -> of how many images the reference is to it, where that is known.
      unlabelled: why the samples have no labels; "" if they have.
      missing: metric -> what the reference lacks.
    """
    reasons = {}
    for metric in metrics:
        need = NEEDS[metric]
        compared = reference_images.get(metric, need.fewest)
        if need.labels and unlabelled:
            reasons[metric] = unlabelled
        elif metric in missing:
            reasons[metric] = missing[metric]
        elif samples < need.fewest:
            reasons[metric] = f"{counted(samples, 'sample')}, and it needs at least {need.fewest}"
        elif compared < need.fewest:
            few = counted(compared, "reference image")
            reasons[metric] = f"{few}, and it needs at least {need.fewest}"
    return reasons


def notes(
    metrics: Iterable[str],
    samples: int,
    reference_images: Mapping[str, int],
    sizes: Mapping[str, int],
) -> dict[str, str]:
    """What is to be known of numbers of few images, by the number's name: a line each.

    Args:
      samples, reference_images: as for `omitted`.
      sizes: output -> D, its features.
    """
    told = {}
    for metric in metrics:
        need, compared = NEEDS[metric], reference_images.get(metric)
        if metric in FRECHET:
            told[metric] = few_for_features(samples, compared, sizes[need.moments])
        elif metric == "kid":
            block = min(samples, compared)
            told[metric] = f"in blocks of {block} images, not of {BLOCK}" if block < BLOCK else ""
        elif metric == "inception_score" and samples % GROUP:
            last = (
                f"{counted(samples % GROUP, 'image')}, not {GROUP}: the score grows with the group"
            )
            told[metric] = f"of {last}" if samples < GROUP else f"the last group is of {last}"
        elif metric == "precision_recall" and (samples < PUBLISHED[0] or compared < PUBLISHED[1]):
            found = f"of {counted(samples, 'sample')} and {counted(compared, 'reference image')}"
            usual = " and ".join(f"{count:,}" for count in PUBLISHED)
            told["precision"] = told["recall"] = f"{found}, not of {usual}: it depends on both"
    return {name: note for name, note in told.items() if note}


def few_for_features(samples: int, compared: int | None, size: int) -> str:
    """What is to be known of a Frechet distance of few images; "" if they are enough.

    Args:
      compared: reference images, None if their number is not known.
      size: D, features of an image.
    """
    counts = {"sample": samples, "reference image": size + 1 if compared is None else compared}
    few = [counted(count, what) for what, count in counts.items() if count <= size]
    if not few:
        return ""
    found = f"{' and '.join(few)} for {size} features"
    return f"{found}: a singular covariance, and a biased distance"


def counted(count: int, what: str) -> str:
    """`1 sample`, `2 samples`."""
    return f"{count} {what}{'s' * (count != 1)}"


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


def flat(
    found: Mapping[str, float], prefix: str, notes: Mapping[str, str] = MappingProxyType({})
) -> dict[str, object]:
    """Numbers under their names in summary.json, each followed by its note."""
    told = {}
    for name, value in found.items():
        told[f"{prefix}_{name}"] = value
        if name in notes:
            told[f"{prefix}_{name}_note"] = notes[name]
    return told
