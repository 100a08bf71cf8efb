"""Metrics and what they are computed with: networks, the reference, texts; and what is left out."""

import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from bar_jax import data
from bar_jax.metrics import KINDS, feature_networks, scores
from bar_jax.metrics import reference as reference_lib
from bar_jax.metrics.features import FeatureNetwork, Features, sizes_of
from bar_jax.metrics.kind import MetricKind
from bar_jax.pretrained import clip_text
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.writer import environment

logger = logging.getLogger(__name__)
CLIP_TEXT = "a photo of {}"  # basis paper


class Measuring(NamedTuple):
    """Metrics, and what they are computed with.

    Attributes:
      metrics: those that can be computed.
      networks, reference: that these need.
      class_texts: CLIP's features of a text for each class [C, D], None if not needed.
      settings: of networks, reference and versions, for the summary; and what is left out, why.
      reference_images: metric -> of how many images the reference is to it, if that is known.
      sizes: output -> features of an image.
      notes: remarks on numbers of few images, by the number's name.
    """

    metrics: tuple[str, ...]
    networks: list[FeatureNetwork]
    reference: scores.Reference | None
    class_texts: np.ndarray | None
    settings: dict[str, object]
    reference_images: dict[str, int]
    sizes: dict[str, int]
    notes: Mapping[str, str] = MappingProxyType({})


def prepare(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    metrics: Sequence[str],
    samples: int,
    unlabelled: str = "",
) -> Measuring:
    """Loads the networks of metrics, and computes or reads the reference.

    First a warning names the metrics that so few images, or missing labels, leave out.

    Args:
      samples: how many there will be.
      unlabelled: why the samples have no labels, if so.

    Raises:
      InputError: a weight file or a reference that cannot be read.
    """
    opened, reference = None, None
    if scores.compared(metrics):
        opened = reference_lib.open_reference(config, metrics)
    images, missing = (opened.images, opened.missing) if opened else ({}, {})
    left_out = scores.omitted(metrics, samples, images, unlabelled, missing)
    metrics, reasons = tuple(m for m in metrics if m not in left_out), _leave_out(left_out)
    kinds = {KINDS[metric].network: KINDS[metric] for metric in metrics}.values()
    networks = [_load(config, mesh, kind) for kind in kinds]
    sizes = sizes_of(networks, config.data.image_size)
    measuring = counted(Measuring(metrics, networks, None, None, reasons, images, sizes), samples)
    if compared := scores.networks_of(scores.compared(metrics)):
        chosen = [network for network in networks if network.name in compared]
        reference = reference_lib.look_at(config, mesh, chosen, metrics, opened)
        rows = {m: KINDS[m].rows for m in images if m in metrics and KINDS[m].rows}
        seen = {metric: len(reference.rows[output]) for metric, output in rows.items()}
        if images != images | seen:  # some were damaged
            measuring = counted(measuring._replace(reference_images=images | seen), samples)
    settings = dict(reference.settings) if reference else {}
    for network in networks:
        settings[f"features_{network.name}"] = f"{network.weights}; resized {network.resize}"
    texts = None
    if any(KINDS[metric].class_texts for metric in metrics):
        clip = next(network for network in networks if network.name == "clip_l14")
        texts = feature_networks.text_features(clip, class_tokens(config))
    settings |= {f"evaluated_{name}": value for name, value in environment().items()}
    settings |= measuring.settings
    return measuring._replace(reference=reference, class_texts=texts, settings=settings)


def _load(config: ConfigDict, mesh: jax.sharding.Mesh, kind: MetricKind) -> FeatureNetwork:
    """The network whose outputs a metric reads."""
    if kind.load:
        return kind.load(config, mesh)
    return feature_networks.load(config, mesh, kind.network)


def counted(measuring: Measuring, samples: int) -> Measuring:
    """What can be measured of a number of samples; warns of what cannot, and of what is of few."""
    images = measuring.reference_images
    reasons = scores.omitted(measuring.metrics, samples, images)
    metrics = tuple(metric for metric in measuring.metrics if metric not in reasons)
    notes = scores.notes(metrics, samples, images, measuring.sizes)
    for note in dict.fromkeys(notes.values()):
        names = ", ".join(name for name, other in notes.items() if other == note)
        logger.warning("evaluate: %s: %s", names, note)
    settings = measuring.settings | _leave_out(reasons)
    return measuring._replace(metrics=metrics, notes=notes, settings=settings)


def _leave_out(reasons: dict[str, str]) -> dict[str, str]:
    """Warns of what is left out, and why; returns the same, for the summary."""
    for metric, reason in reasons.items():
        logger.warning("evaluate: no %s: %s", metric, reason)
    return {f"sample_{metric}_omitted": reason for metric, reason in reasons.items()}


def measure(measuring: Measuring, features: Features) -> dict[str, float]:
    """The numbers of samples whose features are given, by name."""
    return scores.compute(measuring.metrics, features, measuring.reference, measuring.class_texts)


def training_metrics(config: ConfigDict) -> tuple[str, ...]:
    """Those of `train_generator.evaluate_metrics` that can be computed; warns of the others.

    Raises:
      InputError: a weight file is named and not there.
    """
    metrics, spec = [], config.evaluate.reference
    for metric in config.train_generator.evaluate_metrics:
        name = KINDS[metric].network
        reason = ""
        if name in feature_networks.OUTSIDE and not config.evaluate.weights[name]:
            reason = f"evaluate.weights.{name} is not set"
        elif config.data.source == "tokens" and spec in reference_lib.SPLITS:
            reason = f"data.source=tokens holds no images for evaluate.reference={spec}"
        if reason:
            logger.warning("train_generator: no %s during training: %s", metric, reason)
        else:
            field = "train_generator.evaluate_metrics"
            feature_networks.check(config.evaluate.weights, [name], field)
            metrics.append(metric)
    return tuple(metrics)


def class_tokens(config) -> np.ndarray:
    """A text for each class as CLIP's token ids, [C, 77]."""
    spec, classes = config.evaluate.class_names, config.data.num_classes
    names = clip_text.class_names(spec) if spec else data.open_images(config).class_names
    if len(names) != classes:
        expected = f"{classes}, one for each class"
        raise InputError("evaluate.class_names", f"{len(names)} names", expected)
    texts = [CLIP_TEXT.format(name) for name in names]
    return clip_text.tokenize(texts, config.evaluate.clip_vocabulary)
