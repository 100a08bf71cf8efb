"""Metrics of `samples.npz` (or another .npz of images) against the data set.

`class_accuracy`: a small network trained on real training images reads the samples, and held-out
real images for comparison.
"""

import logging
import pathlib
import time
import zipfile

import numpy as np
from ml_collections import ConfigDict

from bar_jax import data
from bar_jax.errors import InputError
from bar_jax.metrics import classifier
from bar_jax.training import preemption
from bar_jax.training.writer import update_summary

logger = logging.getLogger(__name__)
CLASSIFIER_IMAGES = 10_000  # training images of the classifier, at most
CLASSIFIER_BATCH = 500


def run(config: ConfigDict) -> dict[str, object]:
    """Evaluates the samples; returns the summary."""
    began = time.monotonic()
    path = pathlib.Path(config.evaluate.samples or pathlib.Path(config.workdir) / "samples.npz")
    images, labels = read_samples(path, config.data.image_size, config.data.num_classes)
    results: dict[str, object] = {"evaluated_samples": len(images)}
    if "class_accuracy" in config.evaluate.metrics:
        preemption.check("evaluate: nothing is kept")
        params = classifier.train_classifier(
            *_real(config, False, CLASSIFIER_IMAGES), config.data.num_classes
        )
        real_images, real_labels = _real(config, True, CLASSIFIER_IMAGES)
        accuracy = classifier.class_accuracy
        results |= {
            "sample_class_accuracy": accuracy(_logits(params, images), labels),
            "real_class_accuracy": accuracy(_logits(params, real_images), real_labels),
        }
    for name, value in results.items():
        logger.info("evaluate: %s %.4g", name, value)
    seconds = {"seconds_evaluate": round(time.monotonic() - began, 1)}
    return update_summary(config.workdir, results | seconds)


def _logits(params: dict, images: np.ndarray) -> np.ndarray:
    """What the classifier says of images [N, S, S, 3], a batch at a time: [N, C]."""
    batches = [images[i : i + CLASSIFIER_BATCH] for i in range(0, len(images), CLASSIFIER_BATCH)]
    return np.concatenate([classifier.classify(params, b)["logits"] for b in batches])


def read_samples(path: pathlib.Path, size: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [B, H, W, 3] and labels [B] of an .npz.

    Raises:
      InputError: naming the file and what is wrong with it.
    """
    if not path.exists():
        raise InputError(str(path), "no such file", "an .npz of samples; run job=sample")
    try:
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
    # An .npy loads as an array without `files`; a cut-off .npz is a bad zip file.
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(path, f"an unreadable file ({error})", "an .npz of samples") from error
    missing = {"arr_0", "arr_1"} - arrays.keys()
    if missing:
        found = f"no {', '.join(sorted(missing))}"
        raise InputError(path, found, "arr_0 (images) and arr_1 (labels)")
    images, labels = arrays["arr_0"], arrays["arr_1"]
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3) or not len(images):
        found = f"{images.dtype}{list(images.shape)}"
        raise InputError(f"{path}: arr_0", found, f"uint8[B, {size}, {size}, 3]")
    if labels.shape != images.shape[:1] or not np.isin(labels, np.arange(num_classes)).all():
        found = f"{labels.dtype}{list(labels.shape)} from {labels.min()} to {labels.max()}"
        expected = f"a class from 0 to {num_classes - 1} for each image"
        raise InputError(f"{path}: arr_1", found, expected)
    return images, labels


def _real(config: ConfigDict, validation: bool, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Real images uint8 [B, S, S, 3] and labels, evenly taken from the whole split."""
    source = data.open_images(config, validation)
    # Chosen before they are read: a whole training set would not fit into memory.
    source = data.Subset(source, np.arange(0, len(source), -(-len(source) // limit)))
    batches = list(
        data.eval_batches(
            source,
            image_size=config.data.image_size,
            crop="center",
            batch_size=config.encode.batch_size,
            on_damaged=config.data.on_damaged,
        )
    )
    images, labels, mask = (
        np.concatenate([b[n] for b in batches]) for n in ("image", "label", "mask")
    )
    return images[mask], labels[mask]
