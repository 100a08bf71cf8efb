"""The frozen networks that train a tokenizer: which of them a config needs, and on the mesh."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bar_jax.losses.discriminator import Discriminator
from bar_jax.nn.convnext import ConvNeXt
from bar_jax.nn.vgg import VGG16
from bar_jax.pretrained import networks, siglip2
from bar_jax.tokenizers import make_tokenizer
from bar_jax.training import restore


class Modules(NamedTuple):
    """The networks of the losses; the discriminator's own heads are trained, not frozen."""

    vgg16: VGG16
    convnext: ConvNeXt
    discriminator: Discriminator


def published_modules(dtype: jnp.dtype) -> Modules:
    """The modules at their published sizes."""
    return Modules(VGG16(dtype=dtype), ConvNeXt(dtype=dtype), Discriminator(dtype=dtype))


class Networks(NamedTuple):
    """Parameters of the frozen networks; None of one that is not needed.

    Attributes:
      siglip2: {patch_embedding, encoder_vit}, of the configured tokenizer's shapes.
      vgg16, lpips, convnext_s, dino_s8: see `pretrained.networks`.
    """

    siglip2: dict | None = None
    vgg16: dict | None = None
    lpips: dict | None = None
    convnext_s: dict | None = None
    dino_s8: dict | None = None


# The networks, and the terms of the loss that need each.
TERMS = {
    "siglip2": ("alignment",),
    "vgg16": ("lpips", "gram"),
    "lpips": ("lpips",),
    "convnext_s": ("convnext",),
    "dino_s8": ("gan",),
}


def needed(config: ConfigDict) -> list[str]:
    """The networks that training the configured tokenizer needs."""
    loss, tokenizer = config.train_tokenizer.loss, config.model.tokenizer
    names = [name for name, terms in TERMS.items() if any(loss[term] for term in terms)]
    starts = tokenizer.encoder.kind == "siglip2" and not config.init_from
    if starts and "siglip2" not in names:
        names.insert(0, "siglip2")
    return names


def check(config: ConfigDict) -> None:
    """Checks that the weight files that training needs are named and there.

    Raises:
      InputError: naming the file, where it comes from, and the fields that do without it.
    """
    loss = config.train_tokenizer.loss
    for name in needed(config):
        fields = [f"train_tokenizer.loss.{term}=0" for term in TERMS[name] if loss[term]]
        if name == "siglip2" and not config.init_from:
            fields.append("model.tokenizer.encoder.kind=vit (from scratch)")
        field, path = f"train_tokenizer.weights.{name}", config.train_tokenizer.weights[name]
        networks.check_file(name, path, field, " and ".join(fields))


def shapes(config: ConfigDict, mesh: jax.sharding.Mesh) -> Networks:
    """Shapes and layouts of the needed networks' parameters."""
    shapes = lambda name: restore.param_shapes(_makers(config, name)[0], mesh)
    return Networks(**{name: shapes(name) for name in needed(config)})


def load(config: ConfigDict, mesh: jax.sharding.Mesh) -> Networks:
    """Parameters of the needed networks, on the mesh.

    Raises:
      InputError: as `check`; a file that cannot be read, or is another network's.
    """
    check(config)
    paths = config.train_tokenizer.weights
    load = lambda name: networks.load(paths[name], mesh, *_makers(config, name), config.seed)
    return Networks(**{name: load(name) for name in needed(config)})


def _makers(config: ConfigDict, name: str) -> tuple[Callable, Callable]:
    """A network's `init`, key -> fresh parameters, and `read`, path -> those of a file."""
    if name == "siglip2":
        made = siglip2.init_encoder, siglip2.read_encoder
        return tuple(functools.partial(make, make_tokenizer(config)) for make in made)
    made = networks.init_network, networks.read_network
    return tuple(functools.partial(make, name) for make in made)
