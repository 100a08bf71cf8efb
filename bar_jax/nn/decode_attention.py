"""Attention of a sampler over its KV cache: who computes it, and how the cache lies in memory.

At every token a sampler reads its whole cache, so what counts is how many bytes that is, and that
none of them is copied. `choose` says once, before anything is compiled, which of `KINDS` it is; the
cache remembers it. Numbers differ by rounding only.

- `xla`: heads in front of positions, [B, H, S, C], so that CPUs and GPUs need no transposed copy.
- `rows`: a row [H C] for each position. A TPU keeps arrays in tiles of 8 x 128: of [B, H, S, C]
  with 64 channels it would read padding, and multiply one query of a head without its matrix unit.
  Here the scores of all heads come from one product, with queries that are zero outside their own
  head; the matrix unit is as busy with one row as with those of all heads.
- `cudnn`: cuDNN's fused attention, over the filled part alone; rows as well.
- `pallas`: `flash_decoding`, over the filled part alone; heads in front.
"""

import importlib.util

import flax.struct
import jax
import jax.numpy as jnp

from bar_jax.nn import attention
from bar_jax.nn.flash_decoding import TRITON, flash_decoding
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.mesh import constrain_batch

KINDS = ("xla", "rows", "cudnn", "pallas")
ALIGNMENT = 8  # positions of a cache that cuDNN reads are a multiple of this
CUDNN_CHANNELS = 128  # of a head, at most


class LayerCache(flax.struct.PyTreeNode):
    """Keys and values of the positions that a layer has seen; the others are zero.

    Attributes:
      keys, values: [B, H, S, C], or where positions are rows [B, S, H C].
      kind: of `KINDS`.
    """

    keys: jax.Array
    values: jax.Array
    kind: str = flax.struct.field(pytree_node=False)


def choose(
    asked: str, dtype: str, head_dim: int, queries: int = 1, platform: str | None = None
) -> str:
    """Which of `KINDS` serves a sampler.

    `auto` is what was measured to be fastest on an H200: cuDNN's where it is available, else
    Pallas'. For TPUs it is what the compiler predicts to be.

    Args:
      asked: `sample.attention`, auto or one of `KINDS`.
      dtype: what is computed in.
      head_dim: C.
      queries: how many the sampler has at a time.
      platform: of the devices, cpu | gpu | tpu; None: of those present.

    Raises:
      InputError: it is not available here.
    """
    platform = platform or jax.default_backend()
    refused = {kind: _refusal(kind, platform, dtype, head_dim, queries) for kind in KINDS}
    if asked == "auto":
        nvidia = ("cudnn", "pallas") if attention.has_fused_attention() else ()
        wanted = {"gpu": nvidia, "tpu": ("rows",)}.get(platform, ())
        return next((kind for kind in wanted if not refused[kind]), "xla")
    if refused[asked]:
        found, expected = refused[asked]
        raise InputError("sample.attention", f"{asked!r} with {found}", f"auto, or {expected}")
    return asked


def _refusal(kind, platform, dtype, head_dim, queries) -> tuple[str, str] | None:
    """Why a kind is not available: what was found, and what it needs."""
    if kind in ("rows", "pallas") and queries > 1:
        return f"{queries} queries at a time", "one, as model.generator.kind=causal has it"
    if kind == "pallas" and platform != "gpu":
        return f"devices of platform {platform}", "a GPU"
    if kind == "pallas" and importlib.util.find_spec(TRITON) is None:
        return f"JAX {jax.__version__}", "one that has jax.experimental.pallas.triton"
    if kind != "cudnn":
        return None
    if dtype != "bfloat16":
        return f"sample.dtype={dtype}", "sample.dtype=bfloat16"
    if head_dim > CUDNN_CHANNELS or head_dim % 8:
        channels = f"a multiple of 8 channels, at most {CUDNN_CHANNELS}"
        return f"model.generator.heads of {head_dim} channels", f"heads of {channels}"
    if platform != "gpu" or not attention.has_fused_attention():
        return f"devices of platform {platform}", "NVIDIA GPUs, Ampere or newer"
    return None


def empty_cache(
    kind: str, batch: int, length: int, heads: int, head_dim: int, dtype: jnp.dtype
) -> LayerCache:
    """A layer's cache for so many positions, of which none is filled."""
    if kind == "cudnn":
        length += -length % ALIGNMENT
    rows = kind in ("rows", "cudnn")
    shape = (batch, length, heads * head_dim) if rows else (batch, heads, length, head_dim)
    zeros = jnp.zeros(shape, dtype)
    return LayerCache(zeros, zeros, kind)


def attend_cached(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    cache: LayerCache,
    start: jax.Array | int,
    causal: bool = False,
) -> tuple[jax.Array, LayerCache]:
    """Attention of a piece of the sequence to what the cache holds, and to itself.

    Args:
      query, key, value: [B, Q, H, C] of the piece.
      start: index of the piece's first position; all before it are filled.
      causal: whether a query sees of its own piece only what is not after it. Where Q > 1 this is
        for the first piece, start = 0.

    Returns:
      [B, Q, H, C] in the dtype of the query, and the cache with the piece written into it.
    """
    batch, queries, heads, channels = query.shape
    cache = _written(cache, key, value, start)
    if cache.kind != "xla" and causal and queries > 1:
        return attention.attend(query, key, value, causal=True), cache
    keys, values, end = cache.keys, cache.values, start + queries
    if cache.kind == "pallas":
        out = flash_decoding(query[:, 0], keys, values, end)[:, None]
    elif cache.kind == "cudnn":
        out = attend_filled(query, keys, values, end)
    elif cache.kind == "rows":
        out = _attend_rows(query, keys, values, jnp.arange(keys.shape[1]) < end)
    else:
        last = start + jnp.arange(queries) if causal else jnp.full(queries, end - 1)
        visible = jnp.arange(keys.shape[2])[None] <= last[:, None]
        out = _attend_heads(query, keys, values, visible)
    return out, cache


def _written(cache: LayerCache, key: jax.Array, value: jax.Array, start) -> LayerCache:
    """The cache with a piece [B, Q, H, C] written into it."""

    def write(old, new):
        rows = old.ndim == 3
        new = new.reshape(*new.shape[:2], -1) if rows else new.swapaxes(1, 2)
        return jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=1 if rows else 2)

    return cache.replace(keys=write(cache.keys, key), values=write(cache.values, value))


def _attend_heads(query, keys, values, visible):
    """Of a cache with heads in front [B, H, S, C]; `visible` is bool [Q, S]."""
    f32 = jnp.float32
    query = query.swapaxes(1, 2)
    scores = jnp.einsum("bhqc,bhsc->bhqs", query, keys, preferred_element_type=f32)
    weights = _weights(scores, query.shape[-1], visible[None, None]).astype(values.dtype)
    return jnp.einsum("bhqs,bhsc->bhqc", weights, values).swapaxes(1, 2)


def _attend_rows(query, keys, values, visible):
    """Of a cache of rows [B, S, H C], by one query; `visible` is bool [S]."""
    batch, _, heads, channels = query.shape
    own = jnp.eye(heads, dtype=query.dtype)[None, :, :, None]
    apart = (query * own).reshape(batch, heads, heads * channels)
    scores = jnp.einsum("bhd,bsd->bhs", apart, keys, preferred_element_type=jnp.float32)
    weights = _weights(scores, channels, visible[None, None]).astype(values.dtype)
    out = jnp.einsum("bhs,bsd->bhd", weights, values).reshape(batch, heads, heads, channels)
    return jnp.sum(out * own, axis=1)[:, None]


def _weights(scores, channels, visible):
    """Scores before they are scaled -> weights, float32."""
    scores = scores / jnp.sqrt(jnp.float32(channels))
    scores = jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=-1)


def attend_filled(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    filled: jax.Array | int,
    implementation: str = "cudnn",
) -> jax.Array:
    """Attention to the first positions of a cache of rows by JAX's own function.

    Args:
      query: [B, Q, H, C].
      keys, values: [B, S, H C].
      filled: positions that are seen.
      implementation: cudnn | xla, which gives the same numbers on any device.
    """
    batch, _, heads, channels = query.shape
    apart = lambda rows: rows.reshape(batch, -1, heads, channels)
    # Cut like the batch: each device hands cuDNN the lengths of its own examples.
    lengths = lambda number: constrain_batch(jnp.full(batch, number, jnp.int32))
    return jax.nn.dot_product_attention(
        query,
        apart(keys),
        apart(values),
        query_seq_lengths=lengths(query.shape[1]),
        key_value_seq_lengths=lengths(filled),
        implementation=implementation,
    )
