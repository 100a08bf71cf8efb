"""Metrics of a set of images against a reference: of `samples.npz`, or of any .npz or folder.

A number is worth what is known of how it came about. Beside the metrics, `summary.json` holds all
that they depend on: number of images, classes, seed, guidance, schedule, checkpoint (as the set
itself tells, under `evaluated_...`), the reference and its digest, the networks with their weights
and how they resize, and versions. All of it is of one evaluation and is replaced by the next;
`evaluations.jsonl` keeps a line of every one.
"""

import json
import logging
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from bar_jax import data
from bar_jax.data import classes, image_sets
from bar_jax.jobs import reference as reference_lib
from bar_jax.jobs import sample
from bar_jax.metrics import classifier, scores
from bar_jax.metrics.features import FeatureNetwork, Features, extract, sizes_of
from bar_jax.pretrained import clip_text, feature_networks
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime import preemption
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.workdir import read_summary
from bar_jax.runtime.writer import environment, update_summary
from bar_jax.training import restore as models

logger = logging.getLogger(__name__)
CLIP_TEXT = "a photo of {}"  # basis paper
# What of summary.json is of the last evaluation, by how the names begin.
OWN = ("evaluated", "reference", "features_")


def run(config: ConfigDict) -> dict[str, object]:
    """Evaluates the samples; returns the summary."""
    began = time.monotonic()
    metrics = tuple(config.evaluate.metrics)
    if not metrics:
        logger.info("evaluate: evaluate.metrics is empty, nothing to do")
        return read_summary(config.workdir)
    check(config)
    mesh = mesh_lib.make_mesh(**config.mesh)
    samples, told = open_samples(config)
    count, found = len(samples), {}
    with jax.set_mesh(mesh):
        measuring = prepare(config, mesh, metrics, count, getattr(samples, "unlabelled", ""))
        if measuring.metrics:
            batches = reference_lib.batches_of(
                config, mesh, samples, reference_lib.CROP, "evaluate"
            )
            outputs = scores.outputs_of(measuring.metrics)
            features = extract(mesh, measuring.networks, batches, **outputs)
            if features.count != count:  # some were damaged
                count = features.count
                measuring = counted(measuring, count)
            found = scores.flat(measure(measuring, features), "sample", measuring.notes)
        if "class_accuracy" in measuring.metrics:
            found |= _real(config, mesh, measuring)
    settings = {"evaluated_samples": count, **told, **measuring.settings}
    seconds = {"seconds_evaluate": round(time.monotonic() - began, 1)}
    _tell(found, settings)
    if jax.process_index() == 0:
        line = json.dumps({**found, **settings, **seconds})
        with (pathlib.Path(config.workdir) / "evaluations.jsonl").open("a") as file:
            file.write(line + "\n")
    return update_summary(config.workdir, {**found, **settings, **seconds}, _is_own)


def check(config: ConfigDict) -> None:
    """Checks that what the metrics need is there, before there is anything to evaluate.

    Raises:
      InputError: naming a weight file, or a reference that there is not.
    """
    metrics, spec = config.evaluate.metrics, config.evaluate.reference
    names = scores.networks_of(metrics)
    feature_networks.check(config.evaluate.weights, names, "evaluate.metrics")
    compared = any(map(scores.needs_reference, metrics))
    if "clip_score" in metrics:
        _class_tokens(config)
    if "classifier" in names or (compared and spec in reference_lib.SPLITS):
        data.open_images(config)
    elif compared and not pathlib.Path(spec).exists():
        expected = "train | validation | an .npz or a folder of images"
        raise InputError("evaluate.reference", f"no file {spec}", expected)
    elif compared and image_sets.is_npz(spec):
        reference_lib.lacking(pathlib.Path(spec), metrics)


def open_samples(config: ConfigDict) -> tuple[Sequence, dict[str, object]]:
    """The images to evaluate, and what is known of how they were made, for the summary.

    Raises:
      InputError: they cannot be opened, or are not of `data.image_size`.
    """
    spec, section = config.evaluate.samples, config.data
    if spec in reference_lib.SPLITS:
        source = data.open_images(config, validation=spec == "validation")
        told = {"evaluated": f"{spec} images of {section.source} {section.name}".strip()}
        return source, told | {"evaluated_crop": reference_lib.CROP}
    path = spec or str(pathlib.Path(config.workdir) / "samples.npz")
    names = _class_names(config) if scores.needs_labels(config.evaluate.metrics) else ()
    source, size = image_sets.open_set(path, section.num_classes, names), section.image_size
    if source.size != (size, size):
        found = f"images of {source.size[1]} x {source.size[0]} px"
        raise InputError(path, found, f"{size} x {size} px, data.image_size")
    settings = {
        f"evaluated_{name.removeprefix('sample_')}": value
        for name, value in source.settings.items()
        if name != "samples"
    }
    return source, {"evaluated": path, **settings}


class Measuring(NamedTuple):
    """Metrics, and what they are computed with.

    Attributes:
      metrics: those that can be had.
      networks, reference: that these need.
      class_texts: CLIP's features of a text for each class [C, D], None if not needed.
      settings: of networks, reference and versions, for the summary; and what is left out, why.
      reference_images: metric -> of how many images the reference is to it, if that is known.
      sizes: output -> features of an image.
      notes: what is to be known of numbers of few images, by the number's name.
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

    Before that is told what cannot be had, of so few images or without labels.

    Args:
      samples: how many there will be.
      unlabelled: why the samples have no labels, if so.

    Raises:
      InputError: a weight file or a reference that cannot be read.
    """
    opened, reference = None, None
    if any(map(scores.needs_reference, metrics)):
        opened = reference_lib.open_reference(config, metrics)
    images, missing = (opened.images, opened.missing) if opened else ({}, {})
    left_out = scores.omitted(metrics, samples, images, unlabelled, missing)
    metrics, reasons = tuple(m for m in metrics if m not in left_out), _leave_out(left_out)
    names = scores.networks_of(metrics)
    networks = [feature_networks.load(config, mesh, name) for name in names]
    sizes = sizes_of(networks, config.data.image_size)
    measuring = counted(Measuring(metrics, networks, None, None, reasons, images, sizes), samples)
    compared = {
        scores.NEEDS[metric].network for metric in metrics if scores.needs_reference(metric)
    }
    if compared:
        chosen = [network for network in networks if network.name in compared]
        reference = reference_lib.look_at(config, mesh, chosen, metrics, opened)
        rows = {m: scores.NEEDS[m].rows for m in images if m in metrics and scores.NEEDS[m].rows}
        seen = {metric: len(reference.rows[output]) for metric, output in rows.items()}
        if images != images | seen:  # some were damaged
            measuring = counted(measuring._replace(reference_images=images | seen), samples)
    settings = dict(reference.settings) if reference else {}
    for network in networks:
        settings[f"features_{network.name}"] = f"{network.weights}; resized {network.resize}"
    texts = None
    if "clip_score" in metrics:
        clip = next(network for network in networks if network.name == "clip_l14")
        texts = feature_networks.text_features(clip, _class_tokens(config))
    settings |= {f"evaluated_{name}": value for name, value in environment().items()}
    settings |= measuring.settings
    return measuring._replace(reference=reference, class_texts=texts, settings=settings)


def counted(measuring: Measuring, samples: int) -> Measuring:
    """What can be measured of a number of samples; tells what cannot, and what is of few."""
    images = measuring.reference_images
    reasons = scores.omitted(measuring.metrics, samples, images)
    metrics = tuple(metric for metric in measuring.metrics if metric not in reasons)
    notes = scores.notes(metrics, samples, images, measuring.sizes)
    for note in dict.fromkeys(notes.values()):
        names = ", ".join(name for name, told in notes.items() if told == note)
        logger.warning("evaluate: %s: %s", names, note)
    settings = measuring.settings | _leave_out(reasons)
    return measuring._replace(metrics=metrics, notes=notes, settings=settings)


def _leave_out(reasons: dict[str, str]) -> dict[str, str]:
    """Tells what is left out and why; the same, for the summary."""
    for metric, reason in reasons.items():
        logger.warning("evaluate: no %s: %s", metric, reason)
    return {f"sample_{metric}_omitted": reason for metric, reason in reasons.items()}


def measure(measuring: Measuring, features: Features) -> dict[str, float]:
    """The numbers of samples whose features are given, by name."""
    return scores.compute(measuring.metrics, features, measuring.reference, measuring.class_texts)


def training_metrics(config: ConfigDict) -> tuple[str, ...]:
    """Those of `train_generator.evaluate_metrics` that can be had; of the others it is told why.

    Raises:
      InputError: a weight file is named and not there.
    """
    metrics, spec = [], config.evaluate.reference
    for metric in config.train_generator.evaluate_metrics:
        name = scores.NEEDS[metric].network
        reason = ""
        if name in feature_networks.SOURCES and not config.evaluate.weights[name]:
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


def measure_generator(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    measuring: Measuring,
    generator: models.Trained,
    tokenizer: models.Trained,
) -> dict[str, float]:
    """The numbers of `train_generator.evaluate_samples` samples, drawn as job=sample draws them.

    They are of every class equally often, of the first ones once more where that does not come out
    even. Nothing is written.
    """
    count = config.train_generator.evaluate_samples
    labels = np.arange(count, dtype=np.int32) % config.data.num_classes
    batches = _until_told(sample.draw(config, mesh, generator, tokenizer, labels))
    outputs = scores.outputs_of(measuring.metrics)
    features = extract(mesh, measuring.networks, batches, **outputs)
    return measure(measuring, features) | {"evaluated_samples": float(features.count)}


def _until_told(batches: Iterable) -> Iterator:
    """Batches, unless the run is told to stop."""
    for batch in batches:
        preemption.check("evaluation: not finished")
        yield batch


def _real(config, mesh, measuring) -> dict[str, float]:
    """The same classifier's accuracy on held-out real images, for comparison."""
    source = data.open_images(config, validation=True)
    batches = reference_lib.batches_of(config, mesh, source, reference_lib.CROP, "real images")
    chosen = [
        network for network in measuring.networks if network.name == feature_networks.CLASSIFIER
    ]
    features = extract(mesh, chosen, batches, rows=["classifier/logits"])
    accuracy = classifier.class_accuracy(features.rows["classifier/logits"], features.labels)
    return {"real_class_accuracy": accuracy}


def _class_names(config) -> tuple[str, ...]:
    """What the classes are called, in the order of their labels; () if that is not known."""
    try:
        return classes.read(config.workdir) or data.open_images(config).class_names
    except InputError as error:
        logger.info("evaluate: it is not known what the classes are called: %s", error)
        return ()


def _class_tokens(config) -> np.ndarray:
    """A text for each class as CLIP's token ids, [C, 77]."""
    spec, classes = config.evaluate.class_names, config.data.num_classes
    names = clip_text.class_names(spec) if spec else data.open_images(config).class_names
    if len(names) != classes:
        expected = f"{classes}, one for each class"
        raise InputError("evaluate.class_names", f"{len(names)} names", expected)
    texts = [CLIP_TEXT.format(name) for name in names]
    return clip_text.tokenize(texts, config.evaluate.clip_vocabulary)


def _is_own(name: str) -> bool:
    """Whether a name in summary.json is of an evaluation."""
    number = name.removeprefix("sample_").removeprefix("real_")
    number = number.removesuffix("_omitted").removesuffix("_note")
    return name.startswith(OWN) or number in scores.NUMBERS or number in scores.NEEDS


def _tell(found: dict[str, object], settings: dict[str, object]) -> None:
    """One line of numbers and of what they depend on."""
    plain = lambda value: value if isinstance(value, str) else f"{value:.5g}"
    numbers = ", ".join(f"{name} {plain(value)}" for name, value in found.items()) or "no number"
    told = "; ".join(f"{k.removeprefix('evaluated_')} {v}" for k, v in settings.items())
    logger.info("evaluate: %s (%s)", numbers, told)
