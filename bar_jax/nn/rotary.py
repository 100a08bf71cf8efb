"""Axial rotary position embedding over a grid (RoPE, Su et al. 2024)."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

BASE = 10_000.0


def axial_table(
    grid: tuple[int, ...], head_dim: int, prefix: int = 0, base: float = BASE
) -> tuple[np.ndarray, ...]:
    """Cosines and sines of the angles that each place of a grid, or of a sequence, turns by.

    In a grid the first half of the channels turns with the row, the second half with the column; in
    a sequence all of them turn with the place. Frequencies are base^(-2i / C), C being the channels
    that turn together; each serves two neighbouring channels.

    Args:
      grid: rows and columns of tokens, or the length of a sequence alone.
      head_dim: channels of a head, divisible by 2 for each axis.
      prefix: rows of the table in front that do not turn.
      base: of the frequencies.

    Returns:
      cos, sin, each [prefix + places, head_dim] float32, in raster order.
    """
    part = head_dim // len(grid)
    frequencies = base ** (-np.arange(0, part, 2, dtype=np.float64) / part)
    places = np.indices(grid).reshape(len(grid), -1)
    angles = np.concatenate([np.outer(place, frequencies) for place in places], axis=1)
    angles = repeat(angles, "n f -> n (f pair)", pair=2)
    angles = np.concatenate([np.zeros((prefix, head_dim)), angles])
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns neighbouring pairs of channels by the given angles.

    Args:
      x: [B, S, H, C].
      cos, sin: [B, S, C] float32.

    Returns:
      [B, S, H, C] in the dtype of x, computed in float32.
    """
    pairs = rearrange(x.astype(jnp.float32), "b s h (f pair) -> b s h f pair", pair=2)
    turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x.shape)
    return (x * cos[:, :, None] + turned * sin[:, :, None]).astype(x.dtype)
