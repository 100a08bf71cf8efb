"""Orders: the bases of bit tokens, which are permutations of the tokens.

Raster is the identity; RAR (Yu et al. 2025, "Randomized autoregressive visual generation") draws
a random permutation per example, less and less often as training goes on.
"""

import jax
import jax.numpy as jnp


def random_share(step: jax.Array | int, start: int, end: int) -> jax.Array:
    """Share of examples that get a random order: 1 until `start`, linear to 0 at `end` (steps)."""
    return jnp.clip((end - step) / max(end - start, 1), 0.0, 1.0)


def draw_orders(share: jax.Array | float, choice: jax.Array, places: jax.Array) -> jax.Array:
    """The order in which each example's tokens are written.

    Args:
      share: probability of a random order; the rest is raster.
      choice: [B] uniform draws: random where below `share`.
      places: [B, N] uniform draws; their argsort is the random order.

    Returns:
      [B, N] int32: the place (raster index) of the first, second, ... token.
    """
    raster = jnp.arange(places.shape[1], dtype=jnp.int32)[None]
    random = jnp.argsort(places, axis=1).astype(jnp.int32)
    return jnp.where(choice[:, None] < share, random, raster)


def gather(tokens: jax.Array, order: jax.Array) -> jax.Array:
    """Tokens [B, N, ...] at their places -> in the order they are written."""
    index = order.reshape(order.shape + (1,) * (tokens.ndim - 2))
    return jnp.take_along_axis(tokens, index, axis=1)


def scatter(tokens: jax.Array, order: jax.Array) -> jax.Array:
    """The inverse of `gather`: tokens in the order written -> at their places."""
    return gather(tokens, jnp.argsort(order, axis=1))
