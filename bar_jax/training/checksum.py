"""Checksums of arrays, the same for the same numbers on any mesh.

What a checkpoint's files hold is compressed, cut and merged differently on every mesh, and Orbax
checks only a part of them. A sum over the numbers themselves, taken before they are written and
again after they were read, covers all that lies between.
"""

import jax
import jax.numpy as jnp


def checksums(tree: object) -> dict[str, int]:
    """A checksum of each array of a tree by the array's path, such as `kernel` or `0/mu/kernel`.

    A changed bit always changes the checksum; any other change does but for one in 2^32.

    Args:
      tree: arrays of at most 32 bits a number; in a run of many processes, global ones.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        name(path): int(value)
        for (path, _), value in zip(
            leaves, jax.device_get([_checksum(leaf) for _, leaf in leaves]), strict=True
        )
    }


def name(path: tuple) -> str:
    """The path of an array, as `jax.tree_util` has it, as text."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


@jax.jit  # an array at a time: optimisers and averages have arrays of the parameters' shapes
def _checksum(x: jax.Array) -> jax.Array:
    """uint32: the sum over numbers of their bits, each mixed with where it stands.

    Sums of integers do not depend on their order, so neither does it on how x is laid out.
    """
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    position, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        # Not an arange that is reshaped: x stays cut over devices as it is.
        place = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        position += place * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return jnp.sum(_mixed(bits.astype(jnp.uint32) ^ _mixed(position)), dtype=jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
    """uint32 -> uint32, one to one: the last step of MurmurHash3."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
