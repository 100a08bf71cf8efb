"""A basis in training: what it starts as, and how it is moved or kept as it is."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from bar_jax import data
from bar_jax.bases import LEARNED, MATRIX, energy, is_basis, make_basis
from bar_jax.bases.projection import projected
from bar_jax.generators.shuffle import to_patches
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime import workdir
from bar_jax.tokenizers import basis_inside
from bar_jax.tokenizers.basis_fsq import BasisFSQ
from bar_jax.training import restore
from bar_jax.training.step import Path, everything, stream_key

IMAGES = 50_000  # that second moments are taken over, at most
BATCH = 256


class BasisTraining(NamedTuple):
    """What a basis starts as, and how it is moved or kept as it is.

    Attributes:
      pretrained, fixed: see `training.step.Program`.
      trained: path of a parameter -> whether it changes.
      after: what is done to updates in the end.
    """

    pretrained: dict = {}
    fixed: dict = {}
    trained: Callable[[Path], bool] = everything
    after: tuple[optax.GradientTransformation, ...] = ()


def training(
    config: ConfigDict,
    mesh: jax.sharding.Mesh | None,
    module: nn.Module,
    second_moment: np.ndarray | None = None,
) -> BasisTraining:
    """How the basis of a generator or a tokenizer is trained.

    Args:
      mesh: where the basis starts; None for a program that is compiled and not run.
      module: the generator or the tokenizer that it is a part of.
      second_moment: of the training tokens; without it, a basis that is made of the data set's
        tokens starts as a random one.
    """
    if not (module.basis.has_matrix or isinstance(module, BasisFSQ)):
        return BasisTraining()
    section, matrix = config.model.basis, np.asarray(module.start(second_moment), np.float32)
    place = lambda x: x if mesh is None else jax.device_put(x, mesh_lib.replicated(mesh))
    start = {MATRIX: place(matrix)}
    if module.basis.kind != LEARNED:
        return BasisTraining(fixed=start, trained=lambda path: not is_basis(path))
    select = lambda params: jax.tree_util.tree_map_with_path(lambda path, _: is_basis(path), params)
    project = optax.masked(projected(section.projection, section.delta), select)
    return BasisTraining(pretrained=start, after=(project,))


class Moments(NamedTuple):
    """What a basis is measured by: second moments [N, N] of the tokens of each split."""

    train: np.ndarray
    validation: np.ndarray


def token_moment(config: ConfigDict, generator: nn.Module, tokenizer: nn.Module, cache):
    """Mean of x x^T over images and channels, [N, N] float64, of up to IMAGES cached images.

    With their mirror images where the cache has them. Every process computes it whole.
    """
    key, sums, count = stream_key(config.seed, "basis/latents"), 0.0, 0
    spread = np.arange(min(IMAGES, len(cache))) * len(cache) // min(IMAGES, len(cache))
    for begin in range(0, len(spread), BATCH):
        rows = spread[begin : begin + BATCH]
        examples = cache.read(np.resize(rows, BATCH))
        own, counted = jax.random.fold_in(key, begin), np.arange(BATCH) < len(rows)
        for name in ("tokens", "tokens_mirrored")[: 1 + cache.mirrored]:
            part = _moments_of_tokens(generator, tokenizer, examples[name], own, counted)
            sums = sums + np.asarray(part, np.float64)
            count += len(rows)
    return sums / (count * generator.host.channels)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _moments_of_tokens(generator, tokenizer, tokens, key, counted):
    x = tokenizer.latents(tokens, jax.random.split(key, tokens.shape[0]))
    x = to_patches(x, generator.token_grid, generator.patch_size)
    return energy.second_moment(x * counted[:, None, None])[0]


def starts_from_plain(config: ConfigDict) -> bool:
    """Whether a tokenizer with a basis starts from one without: `init_from` has such a one."""
    if not (config.init_from and basis_inside(config)):
        return False
    return not basis_inside(workdir.read_config(config.init_from))


def plain_params(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict:
    """Parameters of the tokenizer without a basis in `init_from`; all but the basis's."""
    plain = config.copy_and_resolve_references()
    plain.model.tokenizer.kind, plain.workdir = "bar_fsq", config.init_from
    return restore.load_tokenizer(plain, mesh).params


def is_made_of_latents(config: ConfigDict) -> bool:
    """Whether A starts as what latents say: not where it comes from another run."""
    if not (basis_inside(config) and make_basis(config).needs_tokens):
        return False
    return not config.init_from or starts_from_plain(config)


def latent_moment(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    tokenizer: nn.Module,
    params: dict,
    source: data.Subset,
) -> np.ndarray:
    """Mean of z z^T over training images and channels, [N, N] float64: what PCA is made of.

    The latents of at most IMAGES images, evenly spread, as the encoder makes them when
    training starts.
    """
    size = config.train_tokenizer.batch_size
    batches = data.eval_batches(
        data.spread(source, IMAGES),
        image_size=config.data.image_size,
        crop="center",
        batch_size=size,
        on_damaged=config.data.on_damaged,
        rows=mesh_lib.batch_share(mesh).rows(size),
    )
    total, images = 0.0, 0
    for batch in batches:
        arrays = mesh_lib.put_batch(mesh, {name: batch[name] for name in ("image", "mask")})
        part, counted = jax.device_get(_moments_of_latents(tokenizer, params, **arrays))
        total, images = total + np.asarray(part, np.float64), images + int(counted)
    return total / (images * tokenizer.bits)


@functools.partial(jax.jit, static_argnums=0)
def _moments_of_latents(tokenizer, params, image, mask):
    z = tokenizer.apply({"params": params}, data.to_float(image), method=tokenizer.project)
    return energy.second_moment(z * mask[:, None, None])[0], mask.sum()
