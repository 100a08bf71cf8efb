"""The basis of a generator: how good it is, how it has changed, what it looks like.

Training calls this at every evaluation, and writes `basis/STEP.npy`, A [N', N] at that step.
"""

import functools
import io
import logging
import math
import pathlib
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from bar_jax import mesh as mesh_lib
from bar_jax import models
from bar_jax.bases import LEARNED, energy
from bar_jax.bases.matrices import principal_components
from bar_jax.bases.projection import projected
from bar_jax.files import write_atomically
from bar_jax.generators.basis import MATRIX, is_basis
from bar_jax.generators.shuffle import to_patches
from bar_jax.training.step import stream_key
from bar_jax.training.writer import MetricsWriter

logger = logging.getLogger(__name__)
IMAGES = 50_000  # that second moments are taken over, at most
BATCH = 256
# What is told of a basis at an evaluation.
NUMBERS = (
    "basis_energy",
    "basis_energy_of_pca",
    "basis_orthogonality",
    "basis_largest_singular_value",
    "basis_smallest_singular_value",
)


class Watched(NamedTuple):
    """A basis that is a matrix, and what it is measured by.

    Attributes:
      generator: a `BasisGenerator`.
      train, validation: second moments [N, N] of the tokens of each split.
    """

    generator: nn.Module
    train: np.ndarray
    validation: np.ndarray


def watch(config: ConfigDict, generator: nn.Module, tokenizer: nn.Module, train, validation):
    """What is watched of a generator's basis; None if that is no matrix.

    Args:
      tokenizer: the module alone.
      train, validation: token caches.
    """
    if not generator.basis.has_matrix:
        return None
    moments = (second_moment(config, generator, tokenizer, cache) for cache in (train, validation))
    return Watched(generator, *moments)


def second_moment(config: ConfigDict, generator: nn.Module, tokenizer: nn.Module, cache):
    """Mean of x x^T over images and channels, [N, N] float64, of up to IMAGES cached images.

    Every process computes it whole.
    """
    key, sums, count = stream_key(config.seed, "basis/latents"), 0.0, 0
    spread = np.arange(min(IMAGES, len(cache))) * len(cache) // min(IMAGES, len(cache))
    for begin in range(0, len(spread), BATCH):
        rows = spread[begin : begin + BATCH]
        tokens = cache.read(np.resize(rows, BATCH))["tokens"]
        own = jax.random.fold_in(key, begin)
        part = _moments(generator, tokenizer, tokens, own, np.arange(BATCH) < len(rows))
        sums = sums + np.asarray(part, np.float64)
        count += len(rows)
    return sums / (count * generator.host.channels)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _moments(generator, tokenizer, tokens, key, counted):
    x = tokenizer.latents(tokens, jax.random.split(key, tokens.shape[0]))
    x = to_patches(x, generator.token_grid, generator.patch_size)
    return energy.second_moment(x * counted[:, None, None])[0]


def training(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    generator: nn.Module,
    watched: Watched | None = None,
) -> dict[str, object]:
    """What `players.one_player` needs to know of a basis: how it starts, whether it is trained.

    Args:
      watched: without it, a basis that is made of the data set's tokens starts as a random one.
    """
    if not generator.basis.has_matrix:
        return {}
    section, moment = config.model.basis, None if watched is None else watched.train
    matrix = generator.basis.matrix(generator.grid, generator.own_order, moment)
    matrix = jnp.asarray(matrix, jnp.float32)
    start = {MATRIX: jax.device_put(matrix, mesh_lib.replicated(mesh))}
    if generator.basis.kind != LEARNED:
        return {"pretrained": start, "trained": lambda path: not is_basis(path)}
    select = lambda params: jax.tree_util.tree_map_with_path(lambda path, _: is_basis(path), params)
    last = optax.masked(projected(section.projection, section.delta), select)
    return {"pretrained": start, "last": last}


def evaluate(
    config: ConfigDict, watched: Watched | None, trained: models.Trained, writer: MetricsWriter
) -> dict[str, float]:
    """Keeps A as it is now, and measures it; nothing where the basis is no matrix.

    Returns:
      See `measure`.
    """
    if watched is None:
        return {}
    matrix = mesh_lib.whole(trained.params[MATRIX])
    if jax.process_index() == 0:
        folder = pathlib.Path(config.workdir) / "basis"
        folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, matrix)
        write_atomically(folder / f"{trained.step:08d}.npy", buffer.getvalue())
    return measure(matrix, watched)


def measure(matrix: np.ndarray, watched: Watched) -> dict[str, float]:
    """Numbers of a basis A [N', N].

    Returns:
      `basis_energy`: area under the prefix-energy curve of the validation images.
      `basis_energy_of_pca`: that as a share of the training images' PCA's.
      `basis_orthogonality`: Frobenius norm of A A^T - I, and the extreme singular values.
    """
    area = energy.energy_area(energy.prefix_energy(matrix, watched.validation))
    pca = principal_components(watched.train)[: len(matrix)]
    best = energy.energy_area(energy.prefix_energy(pca, watched.validation))
    matrix = np.asarray(matrix, np.float64)
    values = np.linalg.svd(matrix, compute_uv=False)
    found = (
        area,
        area / best,
        float(np.linalg.norm(matrix @ matrix.T - np.eye(len(matrix)))),
        float(values[0]),
        float(values[-1]),
    )
    assert all(map(math.isfinite, found))
    return dict(zip(NUMBERS, found, strict=True))
