"""Trained parts of a workdir, ready for use: the module, its parameters, where they came from."""

import hashlib
import json
import logging
import pathlib
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bar_jax.bases import MATRIX
from bar_jax.bases.transform import check_invertible
from bar_jax.config import computed_in
from bar_jax.generators import make_generator
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime import workdir
from bar_jax.tokenizers import basis_inside, kind_of, make_tokenizer, sequence_grid
from bar_jax.training import checkpoint
from bar_jax.training.step import jit_once

logger = logging.getLogger(__name__)


class Trained(typing.NamedTuple):
    """A module with its parameters (the EMA where one was kept) and their training step."""

    module: nn.Module
    params: dict
    step: int


def init_tokenizer(tokenizer: nn.Module, key: jax.Array) -> dict:
    """Fresh parameters of a tokenizer, with logical axis names; {} where it has none."""
    images = jnp.zeros((1, tokenizer.image_size, tokenizer.image_size, 3))
    return tokenizer.init(key, images).get("params", {})


def init_generator(generator: nn.Module, key: jax.Array) -> dict:
    """Fresh parameters of a generator, with logical axis names."""
    tokens = jnp.zeros((1, *generator.token_shape), generator.token_dtype)
    labels = jnp.zeros((1,), jnp.int32)
    keys = jax.random.split(key, 1)
    return generator.init(key, tokens, labels, keys, method=generator.initialize)["params"]


def make_codec(config: ConfigDict) -> nn.Module:
    """The tokenizer's module as trained ones are used: in `encode.dtype`."""
    return make_tokenizer(computed_in(config, config.encode.dtype))


def make_sampler(config: ConfigDict) -> nn.Module:
    """The generator's module to sample with: in `sample.dtype`."""
    return make_generator(computed_in(config, config.sample.dtype))


def load_tokenizer(config: ConfigDict, mesh: jax.sharding.Mesh) -> Trained:
    """The trained tokenizer of `config.workdir`, in `encode.dtype`; some have nothing to train.

    Raises:
      InputError: if there is none, it is not the one the config describes, or its basis cannot be
        inverted.
    """
    tokenizer = make_codec(config)
    if not kind_of(config).has_parameters:
        return Trained(tokenizer, {}, step=0)
    init = lambda k: init_tokenizer(tokenizer, k)
    folder = workdir.trained(config, "tokenizer")
    loaded = _load(folder, tokenizer, init, mesh, config.train_tokenizer.on_damaged_checkpoint)
    if basis_inside(config):
        check_invertible(mesh_lib.gather_to_host(loaded.params[MATRIX]), f"the basis in {folder}")
    return loaded


def find_tokenizer(config: ConfigDict, mesh: jax.sharding.Mesh) -> Trained | None:
    """The workdir's tokenizer; None if there is none and the tokens came without it."""
    folder = pathlib.Path(config.workdir) / "tokenizer"
    if config.data.source == "tokens" and not workdir.begun(folder):
        logger.info("no tokenizer in %s, so no images are drawn", folder)
        return None
    with jax.set_mesh(mesh):
        return load_tokenizer(config, mesh)


def load_generator(config: ConfigDict, mesh: jax.sharding.Mesh) -> Trained:
    """The trained generator of `config.workdir`, to sample with: in `sample.dtype`.

    Raises:
      InputError: if there is none, it is not the one the config describes, or its basis cannot be
        inverted.
    """
    generator = make_sampler(config)
    init = lambda k: init_generator(generator, k)
    folder = workdir.trained(config, "generator")
    loaded = _load(folder, generator, init, mesh, config.train_generator.on_damaged_checkpoint)
    if generator.basis.has_matrix:
        check_invertible(mesh_lib.gather_to_host(loaded.params[MATRIX]), f"the basis in {folder}")
    return loaded


def _load(folder, module, init, mesh, on_damaged: str) -> Trained:
    params, step = checkpoint.restore_params(folder, param_shapes(init, mesh), on_damaged)
    return Trained(module, params, step)


def param_shapes(init, mesh: jax.sharding.Mesh) -> dict:
    """Shapes and shardings of what `init` (key -> named parameters) makes, without making it."""
    return mesh_lib.shapes(mesh, jax.eval_shape(init, jax.random.key(0)))


def fresh_params(init, mesh: jax.sharding.Mesh, seed: int) -> dict:
    """What `init` (key -> named parameters) makes, each directly in its layout on the mesh."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, param_shapes(init, mesh))
    make = lambda key: nn.unbox(init(key))
    return jit_once(make, out_shardings=shardings)(jax.random.key(seed))


def fingerprints(config: ConfigDict, params: dict) -> tuple[str, ...]:
    """Names a tokenizer by its fields and weights, so that its tokens can be told from others'.

    Returns:
      The name that its caches have; of bits it is one of what makes them, without the decoder, so
      that tokens stay those of a tokenizer whose decoder is tuned. Then the name that older caches
      may have, which is one of all weights.
    """
    kind = kind_of(config)
    named = kind.named_by(workdir.to_json(config)["model"]["tokenizer"])
    grid = {"grid": sequence_grid(config)}
    digests = [hashlib.sha256(json.dumps(each | grid, sort_keys=True).encode()) for each in named]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        decodes = path[0].key in kind.decoder
        for digest in digests[-1:] if decodes else digests:
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(mesh_lib.gather_to_host(leaf).tobytes())
    return tuple(digest.hexdigest()[:16] for digest in digests)
