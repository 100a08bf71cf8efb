"""The frozen networks that train a tokenizer: which a config needs, where from, and on the mesh."""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bar_jax.losses.discriminator import Discriminator
from bar_jax.nn.convnext import ConvNeXt
from bar_jax.nn.vgg import VGG16
from bar_jax.pretrained import published
from bar_jax.pretrained.lpips import PACKAGE
from bar_jax.pretrained.networks import IN_PACKAGE, init_network, read_network
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime.errors import InputError
from bar_jax.tokenizers import make_tokenizer
from bar_jax.training import restore as models

RANDOM = "random"  # in the place of a file: random weights, to try out speed and memory
ENCODER = ("patch_embedding", "encoder_vit")  # what of a tokenizer is SigLIP2


class Modules(NamedTuple):
    """The networks of the losses; the discriminator's own heads are trained, not frozen."""

    vgg16: VGG16
    convnext: ConvNeXt
    discriminator: Discriminator


def published_modules(dtype: jnp.dtype) -> Modules:
    """The modules at their published sizes."""
    return Modules(VGG16(dtype=dtype), ConvNeXt(dtype=dtype), Discriminator(dtype=dtype))


class Source(NamedTuple):
    """A network's file, where it comes from, and the terms of the loss that need it."""

    file: str
    origin: str
    terms: tuple[str, ...]


SOURCES = {
    "siglip2": Source(
        "model.safetensors",
        "huggingface.co/google/siglip2-so400m-patch16-naflex (or a published bar_fsq file)",
        ("alignment",),
    ),
    "vgg16": Source(
        "vgg16-397923af.pth", "torchvision, VGG16_Weights.IMAGENET1K_V1", ("lpips", "gram")
    ),
    "lpips": Source(
        "vgg_lpips.pth",
        "the linear heads of LPIPS 0.1 for VGG16, see third_party/lpips",
        ("lpips",),
    ),
    "convnext_s": Source(
        "convnext_small-0c510722.pth",
        "torchvision, ConvNeXt_Small_Weights.IMAGENET1K_V1",
        ("convnext",),
    ),
    "dino_s8": Source(
        "dino_vit_small_patch8_224.pth",
        "discs/ of huggingface.co/nyu-visionx/RAE-collections",
        ("gan",),
    ),
}


def needed(config: ConfigDict) -> list[str]:
    """The networks that training the configured tokenizer needs."""
    loss, tokenizer = config.train_tokenizer.loss, config.model.tokenizer
    names = [name for name, source in SOURCES.items() if any(loss[term] for term in source.terms)]
    starts = tokenizer.encoder.kind == "siglip2" and not config.init_from
    if starts and "siglip2" not in names:
        names.insert(0, "siglip2")
    return names


def check(config: ConfigDict) -> None:
    """Checks that the weight files that training needs are named and there.

    Raises:
      InputError: naming the file, where it comes from, and the fields that do without it.
    """
    for name in needed(config):
        path, source = config.train_tokenizer.weights[name], SOURCES[name]
        if path == RANDOM or (path == PACKAGE and name in IN_PACKAGE):
            continue
        if path and Path(path).is_file():
            continue
        loss = config.train_tokenizer.loss
        fields = [f"train_tokenizer.loss.{term}=0" for term in source.terms if loss[term]]
        if name == "siglip2" and not config.init_from:
            fields.append("model.tokenizer.encoder.kind=vit (from scratch)")
        package = f"; or {PACKAGE}, the package of that name" if name in IN_PACKAGE else ""
        raise InputError(
            f"train_tokenizer.weights.{name}",
            f"no file {path}" if path else "no file",
            f"{source.file} ({source.origin}){package}; or {' and '.join(fields)}",
        )


def shapes(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, dict]:
    """Shapes and layouts of the needed networks' parameters, by name."""
    return {
        name: models.param_shapes(functools.partial(_init, config, name), mesh)
        for name in needed(config)
    }


def load(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, dict]:
    """Parameters of the needed networks by name, on the mesh.

    `siglip2` is a tree {patch_embedding, encoder_vit} of the configured tokenizer's shapes.

    Raises:
      InputError: as `check`; a file that cannot be read, or is another network's.
    """
    check(config)
    params = {}
    for name, layout in shapes(config, mesh).items():
        path = config.train_tokenizer.weights[name]
        if path == RANDOM:
            init = functools.partial(_init, config, name)
            params[name] = models.fresh_params(init, mesh, config.seed)
        elif name == "siglip2":
            params[name] = mesh_lib.place(published.read_encoder(config, path), layout)
        else:
            params[name] = mesh_lib.place(read_network(name, path), layout)
    return params


def _init(config: ConfigDict, name: str, key: jax.Array) -> dict:
    """Fresh parameters of a network, with logical axis names."""
    if name != "siglip2":
        return init_network(name, key)
    params = models.init_tokenizer(make_tokenizer(config), key)
    return {part: params[part] for part in ENCODER}
