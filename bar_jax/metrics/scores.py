"""From features of images to numbers: which features a metric is made of, and the metric."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from bar_jax.metrics import KINDS
from bar_jax.metrics.features import Features
from bar_jax.metrics.kind import Seen, counted
from bar_jax.metrics.moments import Gaussian, gaussian
from bar_jax.runtime.errors import InputError


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


def compared(metrics: Iterable[str]) -> list[str]:
    """Those of the metrics that compare with a reference."""
    return [metric for metric in metrics if KINDS[metric].compares]


def networks_of(metrics: Iterable[str]) -> tuple[str, ...]:
    """The networks that metrics need, each once."""
    return tuple(dict.fromkeys(KINDS[metric].network for metric in metrics))


def names() -> set[str]:
    """The names of all metrics, and of their numbers."""
    return {*KINDS, *(number for kind in KINDS.values() for number in kind.numbers)}


def outputs_of(metrics: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What metrics need of the samples' features: outputs for `moments` and for `rows`."""
    kinds = [KINDS[metric] for metric in metrics]
    return {
        what: tuple(dict.fromkeys(filter(None, (getattr(kind, what) for kind in kinds))))
        for what in ("moments", "rows")
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
        kind = KINDS[metric]
        real = reference_images.get(metric, kind.fewest)
        if kind.labels and unlabelled:
            reasons[metric] = unlabelled
        elif metric in missing:
            reasons[metric] = missing[metric]
        elif samples < kind.fewest:
            reasons[metric] = f"{counted(samples, 'sample')}, and it needs at least {kind.fewest}"
        elif real < kind.fewest:
            few = counted(real, "reference image")
            reasons[metric] = f"{few}, and it needs at least {kind.fewest}"
    return reasons


def notes(
    metrics: Iterable[str],
    samples: int,
    reference_images: Mapping[str, int],
    sizes: Mapping[str, int],
) -> dict[str, str]:
    """Remarks on numbers of few images, by the number's name: a line each.

    Args:
      samples, reference_images: as for `omitted`.
      sizes: output -> D, its features.
    """
    found = {}
    for metric in metrics:
        kind = KINDS[metric]
        note = kind.note(samples, reference_images.get(metric), sizes.get(kind.moments))
        found |= {number: note for number in kind.numbers if not number.endswith("_std")}
    return {number: note for number, note in found.items() if note}


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
        kind = KINDS[metric]
        own = gaussian(samples.moments[kind.moments]) if kind.moments else samples.rows[kind.rows]
        other = _of_reference(metric, own, reference) if kind.compares else None
        seen = Seen(own, other, samples.labels, class_texts)
        found |= dict(zip(kind.numbers, map(float, kind.compute(seen)), strict=True))
    return found


def _of_reference(metric: str, own: Gaussian | np.ndarray, reference: Reference):
    """What a metric compares its features' Gaussian or rows with."""
    kind = KINDS[metric]
    if not kind.moments:
        return reference.rows[kind.rows]
    other = reference.gaussians[kind.moments]
    if own.mean.shape != other.mean.shape:
        found = f"statistics of {len(other.mean)} features"
        raise InputError(reference.name, found, f"{len(own.mean)}, those that {metric} is made of")
    return other


def flat(
    found: Mapping[str, float], prefix: str, notes: Mapping[str, str] = MappingProxyType({})
) -> dict[str, object]:
    """Numbers under their names in summary.json, each followed by its note."""
    summary = {}
    for name, value in found.items():
        summary[f"{prefix}_{name}"] = value
        if name in notes:
            summary[f"{prefix}_{name}_note"] = notes[name]
    return summary
