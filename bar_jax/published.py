"""Published weight files and the configured models: check, read, write.

Names and shapes follow from the configured model, of any size; where it is a published one, the
manifest in `third_party/` agrees and says what else its file holds.
"""

import os
from collections.abc import Mapping

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from bar_jax import mesh as mesh_lib
from bar_jax import models
from bar_jax.errors import InputError
from bar_jax.generators import make_generator
from bar_jax.pretrained import bar_fsq, manifest, masked_bit
from bar_jax.pretrained.files import read_tensors
from bar_jax.tokenizers import make_tokenizer

# The kinds of which there are published weights.
KINDS = {
    "tokenizer": {"model.tokenizer.kind": "bar_fsq"},
    "generator": {"model.generator.kind": "causal", "model.head.kind": "masked_bit"},
}


def check_kind(config: ConfigDict, part: str) -> None:
    """Checks that weights were published for models of the configured kind.

    Args:
      part: `tokenizer` or `generator`.

    Raises:
      InputError: naming the field.
    """
    for field, kind in KINDS[part].items():
        _, section, _ = field.split(".")
        found = config.model[section].kind
        if found != kind:
            raise InputError(field, repr(found), f"{kind!r}: no others were published")


def shapes(config: ConfigDict, part: str) -> tuple[dict[str, manifest.Shape], ...]:
    """Published names and shapes of the tensors that a part is made of, and of those computed."""
    check_kind(config, part)
    if part == "tokenizer":
        return bar_fsq.tokenizer_shapes(_params(config, part)), {}
    params, sizes = _params(config, part), _sequence(config)
    tensors = jax.eval_shape(lambda p: masked_bit.generator_tensors(p, **sizes), params)
    tables = masked_bit.rotary_tensors(params, **sizes)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    computed = {name: found.pop(name) for name in tables}
    return found, computed


def read(config: ConfigDict, part: str, path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a file, which are those of the configured tokenizer or generator.

    Raises:
      InputError: a file that cannot be read; or every tensor that is missing, unused or of another
        shape, and the model that the file is of.
    """
    needed, optional = shapes(config, part)
    tensors = read_tensors(path)
    if part == "tokenizer":
        optional = {name: None for name in tensors if name.startswith(bar_fsq.NOT_READ)}
    manifest.check(path, tensors, needed, optional, f"the configured {part}")
    return tensors


def load(
    config: ConfigDict, part: str, tensors: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh
) -> models.Trained:
    """What `read` returned, as a module with parameters on the mesh, ready for use."""
    if part == "tokenizer":
        module = make_tokenizer(config)
        sizes = config.model.tokenizer
        params = bar_fsq.tokenizer_params(
            tensors,
            grid=module.grid,
            encoder_depth=sizes.encoder.depth,
            encoder_heads=sizes.encoder.heads,
            decoder_depth=sizes.decoder.depth,
            decoder_heads=sizes.decoder.heads,
        )
    else:
        module = make_generator(config)
        params = masked_bit.generator_params(
            tensors,
            depth=module.trunk.depth,
            heads=module.trunk.heads,
            head_depth=module.head.depth,
        )
    del tensors  # where they are not mapped but read: no more than two copies are held
    layout = models.param_shapes(_init(config, part), mesh)
    return models.Trained(module, mesh_lib.place(params, layout), step=0)


def generator_tensors(config: ConfigDict, params: dict) -> dict[str, np.ndarray]:
    """The state dict that the published code loads: the inverse of `load`, with all buffers.

    Args:
      params: of the configured generator, whole numpy arrays.
    """
    check_kind(config, "generator")
    return masked_bit.generator_tensors(params, **_sequence(config))


def _init(config, part):
    """key -> fresh parameters, with logical axis names."""
    if part == "tokenizer":
        return lambda key: models.init_tokenizer(make_tokenizer(config), key)
    bits = config.model.tokenizer.bits
    return lambda key: models.init_generator(make_generator(config), bits, key)


def _params(config, part):
    """Shapes of the parameters."""
    return nn.unbox(jax.eval_shape(_init(config, part), jax.random.key(0)))


def _sequence(config):
    """What the rotary tables depend on."""
    trunk = make_generator(config).trunk
    return {"grid": trunk.grid, "prefix": trunk.prefix}

