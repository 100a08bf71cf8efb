"""Orders: bases that are permutations of the tokens; those of bit tokens are no others.

Raster is the identity; `cells` is xAR's order (Ren et al. 2025) and `subsample` PAR's (Wang et al.
2024); RAR (Yu et al. 2025, "Randomized autoregressive visual generation") draws
a random permutation per example, less and less often as training goes on.
"""

import jax
import jax.numpy as jnp
import numpy as np

from bar_jax.bases.kind import BasisKind, Shape
from bar_jax.runtime.errors import InputError


def raster(shape: Shape) -> np.ndarray:
    """[N] int32: row after row, which is where tokens stand anyway."""
    return np.arange(shape.tokens, dtype=np.int32)


def cells(shape: Shape) -> np.ndarray:
    """[N] int32: square cells of neighbours one after another, each in raster order (xAR)."""
    return _blocks(shape).transpose(0, 2, 1, 3).reshape(-1)


def subsample(shape: Shape) -> np.ndarray:
    """[N] int32: the first token of every block, then the second of every block, ... (PAR)."""
    return _blocks(shape).transpose(1, 3, 0, 2).reshape(-1)


def _blocks(shape: Shape) -> np.ndarray:
    """Places, [rows of blocks, rows in a block, columns of blocks, columns in a block]."""
    (rows, columns), block = shape.grid, shape.block
    if block < 1 or rows % block or columns % block:
        expected = f"a divisor of both sides of the {shape.grid} tokens"
        raise InputError("model.basis.block", f"{block}", expected)
    return raster(shape).reshape(rows // block, block, columns // block, block)


KINDS = {
    "raster": BasisKind(order=raster),
    "cells": BasisKind(order=cells, fields=("block",)),
    "subsample": BasisKind(order=subsample, fields=("block",)),
}


def random_share(step: jax.Array | int, start: int, end: int) -> jax.Array:
    """Fraction of examples in a random order: 1 until `start`, linear to 0 at `end` (steps)."""
    return jnp.clip((end - step) / max(end - start, 1), 0.0, 1.0)


def draw_orders(
    fraction: jax.Array | float,
    choice: jax.Array,
    places: jax.Array,
    otherwise: np.ndarray | None = None,
) -> jax.Array:
    """The order in which each example's tokens are written.

    Args:
      fraction: probability of a random order.
      choice: [B] uniform draws: random where below `fraction`.
      places: [B, N] uniform draws; their argsort is the random order.
      otherwise: [N] the order of the rest; None: raster.

    Returns:
      [B, N] int32: the place (raster index) of the first, second, ... token.
    """
    if otherwise is None:
        otherwise = np.arange(places.shape[1], dtype=np.int32)
    random = jnp.argsort(places, axis=1).astype(jnp.int32)
    return jnp.where(choice[:, None] < fraction, random, jnp.asarray(otherwise)[None])


def gather(tokens: jax.Array, order: jax.Array) -> jax.Array:
    """Tokens [B, N, ...] at their places -> in the order they are written."""
    index = order.reshape(order.shape + (1,) * (tokens.ndim - 2))
    return jnp.take_along_axis(tokens, index, axis=1)


def scatter(tokens: jax.Array, order: jax.Array) -> jax.Array:
    """The inverse of `gather`: tokens in the order written -> at their places."""
    return gather(tokens, jnp.argsort(order, axis=1))
