"""What samples depend on: settings, steps and digests of the weights that drew them."""

import json
import logging
import pathlib
import zipfile

import numpy as np
from ml_collections import ConfigDict

from bar_jax.bases import make_basis
from bar_jax.generators import sampling_fields
from bar_jax.runtime import workdir
from bar_jax.sampling.draw import sample_labels
from bar_jax.training import checkpoint

logger = logging.getLogger(__name__)
CHECKPOINT = "generator_checkpoint"  # the setting that says where it lay


def settings(config: ConfigDict, generator_step: int, tokenizer_step: int) -> dict[str, object]:
    """What the samples depend on."""
    section = config.sample
    classes = list(section.labels) or f"{section.images_per_class} of every class"
    if section.images and not section.labels:
        classes = "drawn at random"
    has_matrix = make_basis(config).has_matrix
    return {
        "samples": len(sample_labels(config)),
        "sample_classes": classes,
        "sample_seed": config.seed,
        "sample_guidance_scale": section.guidance_scale,
        "sample_temperature": section.temperature,
        **{f"sample_{name}": value for name, value in schedule(config).items()},
        **({"sample_basis_inverse": config.model.basis.inverse} if has_matrix else {}),
        "sample_keep": section.keep,
        "sample_dtype": section.dtype,
        "decode_dtype": config.encode.dtype,
        **({"sample_weights": section.weights} if section.weights != "float32" else {}),
        "generator_step": generator_step,
        "tokenizer_step": tokenizer_step,
    }


def digests(config: ConfigDict, **steps: int) -> dict[str, str]:
    """Names of the weights that are used, of all parts that have a checkpoint.

    Steps do not distinguish a tokenizer from the same one with its decoder tuned for as long.
    """
    folders = {part: pathlib.Path(config.workdir) / part for part in steps}
    return {
        f"{part}_digest": checkpoint.weights_digest(folders[part], step)
        for part, step in steps.items()
        if (folders[part] / str(step)).is_dir()
    }


def schedule(config: ConfigDict) -> dict[str, object]:
    """The fields of `sample` that say in which steps the configured generator writes an image."""
    return {name: workdir.to_json(config.sample)[name] for name in sampling_fields(config)}


def stored(path: pathlib.Path) -> dict | None:
    """The settings that a set of samples holds of itself; None if there is no such set."""
    if not path.exists():
        return None
    try:
        with np.load(path) as file:
            found = json.loads(str(file["settings"]))
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        logger.warning("sample: %s is no set of samples (%s); drawn anew", path, error)
        return None
    found.pop(CHECKPOINT, None)  # a workdir may have moved
    return found
