"""Reference statistics: what samples are compared with.

The job writes `reference.npz` of `evaluate.reference` (the training images, the validation images,
or a folder; ADM's centre crop) in the format of the ADM evaluator: `mu`, `sigma`, `mu_s`, `sigma_s`
of all images and `arr_0`, 10,000 of them. Other jobs name such a file, or compute the same as they
need it (`metrics/reference.py`).
"""

import json
import logging
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from bar_jax import data
from bar_jax.data import image_sets
from bar_jax.metrics import KINDS, feature_networks
from bar_jax.metrics.features import sizes_of
from bar_jax.metrics.frechet import few_for_features
from bar_jax.metrics.reference import (
    CROP,
    ROWS,
    look_at,
    open_reference,
    spread_mask,
    stored_names,
)
from bar_jax.metrics.scores import compared, networks_of
from bar_jax.pretrained.networks import is_there
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.files import replacing
from bar_jax.runtime.job import Job, batches_of
from bar_jax.runtime.writer import update_summary

logger = logging.getLogger(__name__)


def run(config: ConfigDict) -> dict[str, object]:
    """Writes `reference.npz`; returns the summary."""
    spec, weights = config.evaluate.reference, config.evaluate.weights
    if image_sets.is_npz(spec):
        expected = "train | validation | a folder, to make a file like that of"
        raise InputError("evaluate.reference", repr(spec), expected)
    names = [n for n in feature_networks.OUTSIDE if is_there(n, weights[n])]
    names = [n for n in names if n in networks_of(compared(KINDS))]
    feature_networks.check(weights, {"inception", *names}, "evaluate.weights")
    path = pathlib.Path(config.workdir) / "reference.npz"
    mesh = mesh_lib.make_mesh(**config.mesh)
    opened = open_reference(config, KINDS)
    if len(opened.source) < 2:
        raise InputError(opened.name, f"{len(opened.source)} image", "at least 2, for a covariance")
    with jax.set_mesh(mesh):
        networks = [feature_networks.load(config, mesh, n) for n in names]
        _warn_of_few(len(opened.source), sizes_of(networks, config.data.image_size))
        reference = look_at(config, mesh, networks, KINDS, opened)
    with mesh_lib.all_or_none():
        if jax.process_index() == 0:
            _write(config, path, opened.source, reference)
    logger.info("reference: %s, of %s", path, opened.name)
    return update_summary(config.workdir, reference.settings)


def _warn_of_few(count: int, sizes: dict[str, int]) -> None:
    """Tells of which outputs there are too few images."""
    for output in (output for output in stored_names() if output in sizes):
        if note := few_for_features(sizes[output] + 1, count, sizes[output]):
            logger.warning("reference: %s: %s", output, note)


def _write(config, path, source, reference) -> None:
    """Writes `reference.npz`."""
    images = _images(config, source)
    arrays = {"arr_0": images, "settings": json.dumps(reference.settings)}
    for output, found in reference.gaussians.items():
        arrays |= dict(zip(stored_names()[output], found, strict=True))
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)


def _images(config: ConfigDict, source: Sequence) -> np.ndarray:
    """ROWS images of a set, uint8 [M, H, W, 3]."""
    chosen = data.Subset(source, np.flatnonzero(spread_mask(len(source), ROWS)))
    batches = data.eval_batches(
        chosen, image_size=config.data.image_size, crop=CROP, batch_size=config.evaluate.batch_size,
        on_damaged=config.data.on_damaged,
    )  # fmt: skip
    return np.concatenate([batch["image"][batch["mask"]] for batch in batches])


JOB = Job(run, batches_of("evaluate"))
