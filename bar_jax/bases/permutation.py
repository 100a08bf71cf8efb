"""Orders: bases that are permutations of the tokens; those of bit tokens are no others.

Raster is the identity; RAR (Yu et al. 2025, "Randomized autoregressive visual generation") draws
a random permutation per example, less and less often as training goes on.
"""

import jax
import jax.numpy as jnp
import numpy as np

from bar_jax.runtime.errors import InputError

ORDERS = ("raster", "cells", "subsample")


def order(kind: str, grid: tuple[int, int], block: int = 2) -> np.ndarray:
    """The fixed order in which the tokens of every image are written.

    Args:
      kind: `raster`; `cells`: square cells of neighbours one after another, each in raster order
        (xAR, Ren et al. 2025); `subsample`: the first token of every block, then the second of
        every block, ... (PAR, Wang et al. 2024).
      grid: rows and columns of the tokens.
      block: side of a cell or block, in tokens.

    Returns:
      [N] int32: the place (raster index) of the first, second, ... token.

    Raises:
      InputError: if the kind is no such order, or blocks do not tile the grid.
    """
    if kind not in ORDERS:
        raise InputError("model.basis.kind", repr(kind), f"one of {', '.join(ORDERS)}")
    places = np.arange(grid[0] * grid[1], dtype=np.int32)
    if kind == "raster":
        return places
    if block < 1 or grid[0] % block or grid[1] % block:
        raise InputError(
            "model.basis.block", f"{block}", f"a divisor of both sides of the {grid} tokens"
        )
    blocks = places.reshape(grid[0] // block, block, grid[1] // block, block)
    return blocks.transpose((0, 2, 1, 3) if kind == "cells" else (1, 3, 0, 2)).reshape(-1)


def random_share(step: jax.Array | int, start: int, end: int) -> jax.Array:
    """Fraction of examples in a random order: 1 until `start`, linear to 0 at `end` (steps)."""
    return jnp.clip((end - step) / max(end - start, 1), 0.0, 1.0)


def draw_orders(
    share: jax.Array | float,
    choice: jax.Array,
    places: jax.Array,
    otherwise: np.ndarray | None = None,
) -> jax.Array:
    """The order in which each example's tokens are written.

    Args:
      share: probability of a random order.
      choice: [B] uniform draws: random where below `share`.
      places: [B, N] uniform draws; their argsort is the random order.
      otherwise: [N] the order of the rest; None: raster.

    Returns:
      [B, N] int32: the place (raster index) of the first, second, ... token.
    """
    if otherwise is None:
        otherwise = np.arange(places.shape[1], dtype=np.int32)
    random = jnp.argsort(places, axis=1).astype(jnp.int32)
    return jnp.where(choice[:, None] < share, random, jnp.asarray(otherwise)[None])


def gather(tokens: jax.Array, order: jax.Array) -> jax.Array:
    """Tokens [B, N, ...] at their places -> in the order they are written."""
    index = order.reshape(order.shape + (1,) * (tokens.ndim - 2))
    return jnp.take_along_axis(tokens, index, axis=1)


def scatter(tokens: jax.Array, order: jax.Array) -> jax.Array:
    """The inverse of `gather`: tokens in the order written -> at their places."""
    return gather(tokens, jnp.argsort(order, axis=1))
