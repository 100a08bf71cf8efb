"""The networks whose features are compared: which a metric needs, and where their weights are."""

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from bar_jax import mesh as mesh_lib
from bar_jax import models
from bar_jax.errors import InputError
from bar_jax.metrics.features import Apply, FeatureNetwork
from bar_jax.pretrained.networks import NETWORKS, init_network, read_network

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
    return path == RANDOM or (bool(path) and Path(path).expanduser().is_file())


def load(name: str, path: str, mesh: jax.sharding.Mesh, apply: Apply) -> FeatureNetwork:
    """A network of SOURCES with its weights, on the mesh.

    Args:
      path: its file, or `random`.
      apply: (params, images uint8) -> outputs; one and the same function for a network, which the
        compiled program is remembered by.

    Raises:
      InputError: the file cannot be read, or is another network's.
    """
    init = functools.partial(init_network, name)
    if path == RANDOM:
        params, weights = models.fresh_params(init, mesh, seed=0), RANDOM
    else:
        layout = models.param_shapes(init, mesh)
        params = mesh_lib.place(read_network(name, path), layout)
        weights = f"{Path(path).name} sha256:{digest(path)}"
    return FeatureNetwork(name, apply, params, weights, SOURCES[name].resize)


@functools.cache
def applied(name: str) -> Apply:
    """How a network of SOURCES is shown images."""
    module = NETWORKS[name].module
    if name == "clip_l14":
        show: Callable = lambda params, images: {
            "image": module.apply({"params": params}, images, method="image_features")
        }
    else:
        show = lambda params, images: module.apply({"params": params}, images)
    return show


def text_features(clip: FeatureNetwork, tokens: np.ndarray) -> np.ndarray:
    """CLIP's features of texts: token ids [C, 77] -> [C, D] float32, not normalised."""
    module = NETWORKS["clip_l14"].module
    show = jax.jit(lambda p, t: module.apply({"params": p}, t, method="text_features"))
    with jax.default_matmul_precision("highest"):
        parts = [show(clip.params, tokens[i : i + TEXTS]) for i in range(0, len(tokens), TEXTS)]
    return np.concatenate([mesh_lib.whole(part) for part in parts])


def digest(path: str | Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256."""
    with Path(path).expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
