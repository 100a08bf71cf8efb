"""Kernels that stay small in memory, bfloat16 or int8, and are widened inside the product.

With one or two rows a product takes as long as its kernel takes from memory. XLA's CPU compiler
widens a whole kernel before it multiplies, writes it to memory and reads it again. So here the
kernel is cut into tiles, and one loop over them loads, widens, multiplies and adds in registers.
"""

import jax
import jax.numpy as jnp

# A step of the loop takes DEPTH inputs for all outputs, and LANES outputs lie side by side: tiles
# that follow each other in memory are read one after another.
DEPTH, LANES = 32, 16

# With more rows than this arithmetic takes longer than memory: the kernel is widened whole.
FEW_ROWS = 8


def quantize(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Symmetric int8 with a scale for each output: [in, out] -> int8 [in, out], float32 [out].

    kernel = codes * scale to half a scale; the largest number of a column becomes +-127.
    """
    largest = jnp.max(jnp.abs(kernel), axis=0, keepdims=True)
    scale = jnp.where(largest > 0, largest / 127, 1.0)
    return jnp.round(kernel / scale).astype(jnp.int8), scale[0]


def to_tiles(kernel: jax.Array) -> jax.Array:
    """The layout that `multiply` reads, padded by zeros.

    Args:
      kernel: [in, out], int8 or bfloat16.

    Returns:
      [in / DEPTH, out / LANES, DEPTH, LANES] int8; of bfloat16 two inputs share a uint32, the first
      in the lower half: [in / DEPTH, out / LANES, DEPTH / 2, LANES].
    """
    rows, columns = (-n % size for n, size in zip(kernel.shape, (DEPTH, LANES), strict=True))
    kernel = jnp.pad(kernel, ((0, rows), (0, columns)))
    tiles = kernel.reshape(kernel.shape[0] // DEPTH, DEPTH, -1, LANES).swapaxes(1, 2)
    if kernel.dtype == jnp.int8:
        return tiles
    words = jax.lax.bitcast_convert_type(tiles, jnp.uint16).astype(jnp.uint32)
    return words[:, :, ::2] | words[:, :, 1::2] << 16


def multiply(x: jax.Array, tiles: jax.Array, outputs: int) -> jax.Array:
    """x [M, in] times the kernel that `to_tiles` laid out: [M, out] float32, sums in float32."""
    rows, (steps, groups, _, _) = x.shape[0], tiles.shape
    x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, steps * DEPTH - x.shape[1])))
    if rows > FEW_ROWS:
        if tiles.dtype == jnp.uint32:
            tiles = jax.lax.bitcast_convert_type(tiles, jnp.bfloat16).swapaxes(3, 4)
        wide = tiles.reshape(steps, groups, DEPTH, LANES).astype(jnp.float32)
        return (x @ wide.swapaxes(1, 2).reshape(steps * DEPTH, groups * LANES))[:, :outputs]
    # Two rows share a number that is widened, if they lie side by side in the innermost axis.
    pair = 2 - rows % 2
    x = x.reshape(rows // pair, pair, steps, DEPTH).transpose(2, 3, 0, 1)

    def step(i, sums):
        here = jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
        for row, weights in zip(here, _widened(tiles, i), strict=True):
            sums += weights[:, None, :, None] * row[None, :, None, :]
        return sums

    sums = jnp.zeros((groups, rows // pair, LANES, pair), jnp.float32)
    sums = jax.lax.fori_loop(0, steps, step, sums)
    return sums.transpose(1, 3, 0, 2).reshape(rows, -1)[:, :outputs]


def _widened(tiles: jax.Array, i: jax.Array) -> list[jax.Array]:
    """The weights of each of the DEPTH inputs of step i, float32 [out / LANES, LANES]."""
    wide = []
    for k in range(tiles.shape[2]):
        # Each line on its own: the compiler would copy a whole step's tiles.
        part = jax.lax.dynamic_slice(tiles, (i, 0, k, 0), (1, tiles.shape[1], 1, LANES))[0, :, 0]
        if tiles.dtype == jnp.int8:
            wide.append(part.astype(jnp.float32))
        else:  # by shifts: the compiler's own conversion of bfloat16 is slow
            halves = part << 16, part & jnp.uint32(0xFFFF0000)
            wide += [jax.lax.bitcast_convert_type(half, jnp.float32) for half in halves]
    return wide
