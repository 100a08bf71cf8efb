"""Attention of one query over the filled part of a KV cache, as a kernel for GPUs.

Decoding is made of reading the cache, so what is not filled yet should not be read. The scheme is
flash decoding's (Dao et al. 2023): the softmax is computed block by block with a running maximum
(Milakov & Gimelshein 2018), and where there are too few heads and examples to fill a GPU, the
filled blocks are shared among several programs, whose results are joined by their weights.
"""

import functools
import importlib
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from bar_jax.runtime.mesh import BATCH_AXES, batch_ways

# What compiles the kernel. JAX deprecates it from 0.12 on in favour of Mosaic, which is for Hopper
# and newer alone. Imported where it is used, so that nothing else needs it.
TRITON = "jax.experimental.pallas.triton"
# Positions that are read at a time: 64 rows of 64 channels are 32 sums in each of 4 x 32 threads.
BLOCK = 64
WARPS = 4
# Programs that fill a GPU: some eight for each of the 132 multiprocessors of an H100.
PROGRAMS = 1024
# Less than any score, and not so small that a difference of two of them would be infinite.
UNSEEN = -1e30


class Blocks(NamedTuple):
    """How a cache is cut.

    Attributes:
      size: positions of a block, a power of 2.
      splits: programs that share the filled blocks of a head.
    """

    size: int
    splits: int


def blocks(batch: int, heads: int, length: int) -> Blocks:
    """How a cache [B, H, S, C] is cut."""
    size = min(BLOCK, 2 ** int(math.log2(length)))
    wanted = pl.cdiv(PROGRAMS, batch * heads)
    return Blocks(size, min(wanted, pl.cdiv(length, size)))


def flash_decoding(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    filled: jax.Array | int,
    cut: Blocks | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(C)) v over the first positions of a cache, in float32.

    Blocks of which nothing is filled are not read. On a mesh every device has its own examples and
    heads. On a CPU the kernel is interpreted, which is slow and for tests.

    Args:
      query: [B, H, C].
      keys, values: [B, H, S, C].
      filled: positions that are seen, 1 to S, the same for all; known at run time.
      cut: how the cache is cut; None: by `blocks`, of what is on one device.

    Returns:
      [B, H, C] in the dtype of the query.
    """
    filled = jnp.asarray(filled, jnp.int32).reshape(1)
    of_device = functools.partial(_of_device, cut=cut)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return of_device(query, keys, values, filled)
    batch, heads = query.shape[:2]
    spec = P(
        BATCH_AXES if batch % batch_ways(mesh) == 0 else None,
        "tensor" if heads % mesh.shape["tensor"] == 0 else None,
    )
    # A kernel cannot be cut by the compiler, and does not say which of its outputs differ.
    cut_up = jax.shard_map(
        of_device, in_specs=(spec, spec, spec, P()), out_specs=spec, check_vma=False
    )
    return cut_up(query, keys, values, filled)


def _of_device(query, keys, values, filled, cut):
    cut = cut or blocks(*keys.shape[:3])
    run = functools.partial(_programs, cut=cut)
    out, log_sum = jax.lax.platform_dependent(
        *(query, keys, values, filled),
        cpu=functools.partial(run, interpret=True),
        default=functools.partial(run, interpret=False),
    )
    if cut.splits == 1:
        return out[:, :, 0]
    weights = jax.nn.softmax(log_sum, axis=-1)
    return jnp.einsum("bhs,bhsc->bhc", weights, out).astype(query.dtype)


def _programs(query, keys, values, filled, cut: Blocks, interpret: bool):
    """A program for every example, head and split.

    Returns:
      [B, H, splits, C] each split's result, of one split in the dtype of the query, else float32;
      and [B, H, splits] float32 the logarithm of the sum of its weights, -inf where it saw nothing.
    """
    triton = importlib.import_module(TRITON)
    batch, heads, length, channels = keys.shape
    row = pl.BlockSpec((None, None, channels), lambda b, h, s: (b, h, 0))
    cache = pl.BlockSpec((None, None, length, channels), lambda b, h, s: (b, h, 0, 0))
    dtype = query.dtype if cut.splits == 1 else jnp.float32
    return pl.pallas_call(
        functools.partial(_kernel, size=cut.size, splits=cut.splits),
        grid=(batch, heads, cut.splits),
        in_specs=[row, cache, cache, pl.BlockSpec((1,), lambda b, h, s: (0,))],
        out_specs=[
            pl.BlockSpec((None, None, None, channels), lambda b, h, s: (b, h, s, 0)),
            pl.BlockSpec((None, None, 1), lambda b, h, s: (b, h, s)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((batch, heads, cut.splits, channels), dtype),
            jax.ShapeDtypeStruct((batch, heads, cut.splits), jnp.float32),
        ],
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=2),
        interpret=interpret,
        name="flash_decoding",
    )(query, keys, values, filled)


def _kernel(query, keys, values, filled, out, log_sum, *, size: int, splits: int):
    """One split of one head of one example; the arguments are references.

    Each of a block's rows has a maximum and sums of its own, so that threads need to meet only at
    the end, and for a score, along the channels.
    """
    length, channels = keys.shape
    pieces = _powers_of_two(channels)
    seen = filled[0]
    of_split = pl.cdiv(pl.cdiv(seen, size), splits)
    first = pl.program_id(2) * of_split
    last = jnp.minimum(first + of_split, pl.cdiv(seen, size))
    f32 = jnp.float32
    q = [query[piece].astype(f32) / math.sqrt(channels) for piece in pieces]

    def add(block, carry):
        top, total, sums = carry
        # The last block of the cache begins early enough to be whole; what it shares with the one
        # before it is not counted again.
        start = jnp.minimum(block * size, length - size)
        rows = pl.ds(start, size)
        position = start + jnp.arange(size)
        counted = (position >= block * size) & (position < seen)
        score = sum(
            jnp.sum(keys[rows, piece].astype(f32) * part[None], axis=1)
            for piece, part in zip(pieces, q, strict=True)
        )
        new_top = jnp.maximum(top, jnp.where(counted, score, UNSEEN))
        weight = jnp.where(counted, jnp.exp(score - new_top), 0.0)
        kept = jnp.exp(top - new_top)
        sums = [
            kept[:, None] * part + weight[:, None] * values[rows, piece].astype(f32)
            for piece, part in zip(pieces, sums, strict=True)
        ]
        return new_top, kept * total + weight, sums

    nothing = jnp.full(size, UNSEEN, f32), jnp.zeros(size, f32)
    nothing = *nothing, [jnp.zeros((size, piece.size), f32) for piece in pieces]
    top, total, sums = jax.lax.fori_loop(first, last, add, nothing)
    highest = jnp.max(top, axis=0)
    share = jnp.exp(top - highest)
    total = jnp.sum(share * total, axis=0)
    some = total > 0
    divisor = jnp.where(some, total, 1.0)
    for piece, part in zip(pieces, sums, strict=True):
        out[piece] = (jnp.sum(share[:, None] * part, axis=0) / divisor).astype(out.dtype)
    log_sum[...] = jnp.where(some, highest + jnp.log(divisor), -jnp.inf)[None]


def _powers_of_two(channels: int) -> list[pl.Slice]:
    """Slices of the channels as long as powers of 2, as Triton needs them: of 80, 64 and 16."""
    pieces, start = [], 0
    for power in reversed(range(channels.bit_length())):
        if channels >> power & 1:
            pieces.append(pl.ds(start, 2**power))
            start += 2**power
    return pieces
