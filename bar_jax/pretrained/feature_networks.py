"""The networks that images are measured by: where their weights are from, and on the mesh.

Of the published ones the weight files are the user's to fetch. For small data sets there is a
classifier, trained on the data set itself.
"""

import functools
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from bar_jax import data
from bar_jax.data import image_sets
from bar_jax.metrics import classifier
from bar_jax.metrics.features import Apply, FeatureNetwork
from bar_jax.pretrained.networks import NETWORKS, init_network, read_network
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime.errors import InputError
from bar_jax.training import restore as models

CLASSIFIER = "classifier"
CLASSIFIER_IMAGES = 50_000  # training images of the classifier, at most
CROP = "adm"  # of the images that it is trained on
TEXTS = 100  # that are shown to CLIP at a time
RANDOM = "random"  # in the place of a file: random weights, to try out speed and memory
ALTERNATIVE = "classifier_fid and class_accuracy, which need no file"


class Source(NamedTuple):
    """A network's file and where it comes from, and how it resizes images."""

    file: str
    origin: str
    resize: str


SOURCES = {
    "inception": Source(
        "pt_inception-2015-12-05-6726825d.pth",
        "the releases of github.com/mseitzer/pytorch-fid, see third_party/inception",
        "to 299 px as TensorFlow 1: bilinear, no half-pixel centres, no antialiasing",
    ),
    "dinov2_l14": Source(
        "dinov2_vitl14_pretrain.pth",
        "torch.hub facebookresearch/dinov2, see third_party/dinov2",
        "to 224 px: bicubic, antialiased, rounded to 8 bits",
    ),
    "clip_l14": Source(
        "model.safetensors",
        "huggingface.co/openai/clip-vit-large-patch14, see third_party/clip",
        "to 224 px: bicubic, antialiased, rounded to 8 bits",
    ),
}


def check(weights: Mapping[str, str], networks: Iterable[str], field: str) -> None:
    """Checks that the weight files of networks are named and there.

    Args:
      weights: network -> its file, as `evaluate.weights`.
      networks: some of SOURCES; others are not looked at.
      field: that asks for metrics, for the message.

    Raises:
      InputError: naming the file, where it comes from, and what does without it.
    """
    for name in networks:
        if name not in SOURCES or is_there(weights[name]):
            continue
        path, source = weights[name], SOURCES[name]
        raise InputError(
            f"evaluate.weights.{name}",
            f"no file {path}" if path else "no file",
            f"{source.file} ({source.origin}); or another {field}: {ALTERNATIVE}",
        )


def is_there(path: str) -> bool:
    """Whether a field names weights that can be had."""
    return path == RANDOM or (bool(path) and Path(path).is_file())


def load(config: ConfigDict, mesh: jax.sharding.Mesh, name: str) -> FeatureNetwork:
    """A network on the mesh, with the weights of `evaluate.weights`.

    The classifier is read, or trained on the training images and kept in the workdir.

    Args:
      name: one of SOURCES, or `classifier`.

    Raises:
      InputError: a file cannot be read, or is another network's.
    """
    if name == CLASSIFIER:
        return _load_classifier(config, mesh)
    path, init = config.evaluate.weights[name], functools.partial(init_network, name)
    if path == RANDOM:
        params, weights = models.fresh_params(init, mesh, seed=0), RANDOM
    else:
        layout = models.param_shapes(init, mesh)
        params = mesh_lib.place(read_network(name, path), layout)
        weights = f"{Path(path).name} sha256:{digest(path)}"
    return FeatureNetwork(name, _applied(name), params, weights, SOURCES[name].resize)


@functools.cache  # the compiled program is remembered by the function
def _applied(name: str) -> Apply:
    """How a published network is shown images."""
    module = NETWORKS[name].module
    if name == "clip_l14":
        return lambda params, images: {
            "image": module.apply({"params": params}, images, method="image_features")
        }
    return lambda params, images: module.apply({"params": params}, images)


def _load_classifier(config, mesh) -> FeatureNetwork:
    """The classifier of the data set: read, or trained on its training images and kept."""
    path = config.evaluate.weights.classifier
    if not path:
        source = data.open_images(config)
        told = f"{image_sets.fingerprint(source)} {config.data.image_size} {classifier.RECIPE}"
        key = hashlib.sha256(told.encode()).hexdigest()[:16]
        path = Path(config.workdir) / f"classifier-{key}.safetensors"
        if not mesh_lib.first_says(path.is_file):
            with mesh_lib.all_or_none():
                images, labels = _training_images(config, source)
            # By each process for itself: it takes no longer, and they stay in step.
            with jax.set_mesh(mesh_lib.make_mesh(devices=jax.local_devices()[:1])):
                trained = classifier.train_classifier(images, labels, config.data.num_classes)
            with mesh_lib.all_or_none():
                if jax.process_index() == 0:
                    classifier.save(path, trained)
    params = classifier.load(path)
    classes = params["logits"]["bias"].shape[0]
    if classes != config.data.num_classes:
        expected = f"one of {config.data.num_classes}"
        raise InputError(path, f"a classifier of {classes} classes", expected)
    layout = mesh_lib.shapes(mesh, params)
    weights = f"{Path(path).name} sha256:{digest(path)}"
    resize = f"to at most {classifier.LARGEST_SIDE} px: mean of the pixels covered"
    params = mesh_lib.place(params, layout)
    return FeatureNetwork(CLASSIFIER, classifier.classify, params, weights, resize)


def _training_images(config, source) -> tuple[np.ndarray, np.ndarray]:
    """Images as small as the classifier sees them, uint8 [N, S, S, 3], and labels [N]."""
    # Chosen before they are read: a whole training set would not fit into memory.
    step = -(-len(source) // CLASSIFIER_IMAGES)
    source = data.Subset(source, np.arange(0, len(source), step))
    batches = data.eval_batches(
        source,
        image_size=config.data.image_size,
        crop=CROP,
        batch_size=config.evaluate.batch_size,
        on_damaged=config.data.on_damaged,
    )
    images, labels = [], []
    for batch in batches:
        images.append(np.asarray(classifier.shrink(batch["image"]))[batch["mask"]])
        labels.append(batch["label"][batch["mask"]])
    return np.concatenate(images), np.concatenate(labels)


def text_features(clip: FeatureNetwork, tokens: np.ndarray) -> np.ndarray:
    """CLIP's features of texts: token ids [C, 77] -> [C, D] float32, not normalised."""
    module = NETWORKS["clip_l14"].module
    show = jax.jit(lambda p, t: module.apply({"params": p}, t, method="text_features"))
    with jax.default_matmul_precision("highest"):
        parts = [show(clip.params, tokens[i : i + TEXTS]) for i in range(0, len(tokens), TEXTS)]
    return np.concatenate([mesh_lib.whole(part) for part in parts])


def digest(path: str | Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
