"""Metrics of a set of images against a reference: of `samples.npz`, or of any .npz or folder.

A number is worth what is known of how it came about. Beside the metrics, `summary.json` holds all
that they depend on: number of images, classes, seed, guidance, schedule, checkpoint (as the set
itself holds, under `evaluated_...`), the reference and its digest, the networks with their weights
and how they resize, and versions. All of it is of one evaluation and is replaced by the next;
`evaluations.jsonl` keeps a line of every one.
"""

import json
import logging
import pathlib
import time
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from bar_jax import data
from bar_jax.data import classes, image_sets
from bar_jax.metrics import KINDS, feature_networks, scores
from bar_jax.metrics import measuring as measuring_lib
from bar_jax.metrics import reference as reference_lib
from bar_jax.metrics.features import extract
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.job import Job, batches_of
from bar_jax.runtime.workdir import read_summary
from bar_jax.runtime.writer import update_summary

logger = logging.getLogger(__name__)
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
    samples, origin = open_samples(config)
    count, found = len(samples), {}
    with jax.set_mesh(mesh):
        unlabelled = getattr(samples, "unlabelled", "")
        measuring = measuring_lib.prepare(config, mesh, metrics, count, unlabelled)
        if measuring.metrics:
            batches = reference_lib.batches_of(
                config, mesh, samples, reference_lib.CROP, "evaluate"
            )
            outputs = scores.outputs_of(measuring.metrics)
            features = extract(mesh, measuring.networks, batches, **outputs)
            if features.count != count:  # some were damaged
                count = features.count
                measuring = measuring_lib.counted(measuring, count)
            found = scores.flat(
                measuring_lib.measure(measuring, features), "sample", measuring.notes
            )
        if real := [metric for metric in measuring.metrics if KINDS[metric].real]:
            found |= _real(config, mesh, measuring, real)
    settings = {"evaluated_samples": count, **origin, **measuring.settings}
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
    compared = scores.compared(metrics)
    if any(KINDS[metric].class_texts for metric in metrics):
        measuring_lib.class_tokens(config)
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
        origin = {"evaluated": f"{spec} images of {section.source} {section.name}".strip()}
        return source, origin | {"evaluated_crop": reference_lib.CROP}
    path = spec or str(pathlib.Path(config.workdir) / "samples.npz")
    names = _class_names(config) if any(KINDS[m].labels for m in config.evaluate.metrics) else ()
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


def _real(config, mesh, measuring, metrics) -> dict[str, float]:
    """The same numbers of held-out real images, for comparison."""
    source = data.open_images(config, validation=True)
    batches = reference_lib.batches_of(config, mesh, source, reference_lib.CROP, "real images")
    features = extract(mesh, measuring.networks, batches, **scores.outputs_of(metrics))
    return scores.flat(scores.compute(metrics, features, measuring.reference), "real")


def _class_names(config) -> tuple[str, ...]:
    """What the classes are called, in the order of their labels; () if that is not known."""
    try:
        return classes.read(config.workdir) or data.open_images(config).class_names
    except InputError as error:
        logger.info("evaluate: it is not known what the classes are called: %s", error)
        return ()


def _is_own(name: str) -> bool:
    """Whether a name in summary.json is of an evaluation."""
    number = name.removeprefix("sample_").removeprefix("real_")
    number = number.removesuffix("_omitted").removesuffix("_note")
    return name.startswith(OWN) or number in scores.names()


def _tell(found: dict[str, object], settings: dict[str, object]) -> None:
    """One line of numbers and of what they depend on."""
    plain = lambda value: value if isinstance(value, str) else f"{value:.5g}"
    numbers = ", ".join(f"{name} {plain(value)}" for name, value in found.items()) or "no number"
    words = "; ".join(f"{k.removeprefix('evaluated_')} {v}" for k, v in settings.items())
    logger.info("evaluate: %s (%s)", numbers, words)


JOB = Job(run, batches_of("evaluate"))
