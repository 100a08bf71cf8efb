"""The networks that images are measured by: where their weights are from, and on the mesh.

The weight files of outside networks are the user's to fetch. For small data sets there is a
classifier, trained on the data set itself.
"""

import functools
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from bar_jax import data
from bar_jax.data import image_sets
from bar_jax.metrics import classifier
from bar_jax.metrics.features import Apply, FeatureNetwork
from bar_jax.pretrained import networks
from bar_jax.pretrained.networks import NETWORKS, init_network, read_network
from bar_jax.runtime import files
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime.errors import InputError

CLASSIFIER = "classifier"
CLASSIFIER_IMAGES = 50_000  # training images of the classifier, at most
CROP = "adm"  # of the images that it is trained on
TEXTS = 100  # that are shown to CLIP at a time
ALTERNATIVE = "classifier_fid and class_accuracy, which need no file"
# Of the outside networks those that measure, and say how they resize images.
OUTSIDE = tuple(name for name, network in NETWORKS.items() if network.resize)


def check(weights: Mapping[str, str], names: Iterable[str], field: str) -> None:
    """Checks that the weight files of networks are named and there.

    Args:
      weights: network -> its file, as `evaluate.weights`.
      names: of networks; the classifier needs no file.
      field: that asks for metrics, for the message.

    Raises:
      InputError: naming the file, where it comes from, and what does without it.
    """
    for name in names:
        if name in OUTSIDE:
            otherwise = f"another {field}: {ALTERNATIVE}"
            networks.check_file(name, weights[name], f"evaluate.weights.{name}", otherwise)


def load(config: ConfigDict, mesh: jax.sharding.Mesh, name: str) -> FeatureNetwork:
    """A network on the mesh, with the weights of `evaluate.weights`.

    The classifier is read, or trained on the training images and kept in the workdir.

    Args:
      name: one of OUTSIDE, or `classifier`.

    Raises:
      InputError: a file cannot be read, or is another network's.
    """
    if name == CLASSIFIER:
        return _load_classifier(config, mesh)
    path, network = config.evaluate.weights[name], NETWORKS[name]
    init, read = (functools.partial(f, name) for f in (init_network, read_network))
    params = networks.load(path, mesh, init, read, seed=0)
    weights = networks.RANDOM if path == networks.RANDOM else _named(path)
    return FeatureNetwork(name, _apply(name), params, weights, network.resize)


@functools.cache  # the compiled program is remembered by the function
def _apply(name: str) -> Apply:
    """How an outside network is shown images."""
    module, method = NETWORKS[name].module, NETWORKS[name].outputs
    return lambda params, images: module.apply({"params": params}, images, method=method)


def _named(path: str | Path) -> str:
    """A weight file in a summary: its name and digest."""
    return f"{Path(path).name} sha256:{files.digest(path)}"


def _load_classifier(config, mesh) -> FeatureNetwork:
    """The classifier of the data set: read, or trained on its training images and kept."""
    path = config.evaluate.weights.classifier
    if not path:
        source = data.open_images(config)
        identity = f"{image_sets.fingerprint(source)} {config.data.image_size} {classifier.RECIPE}"
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        path = Path(config.workdir) / f"classifier-{key}.safetensors"
        if not mesh_lib.broadcast_from_first(path.is_file):
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
    resize = f"to at most {classifier.LARGEST_SIDE} px: mean of the pixels covered"
    params = mesh_lib.place(params, layout)
    return FeatureNetwork(CLASSIFIER, classifier.classify, params, _named(path), resize)


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
    return np.concatenate([mesh_lib.gather_to_host(part) for part in parts])
