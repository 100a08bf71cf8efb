"""Scaled dot-product attention."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visible: jax.Array | None = None,
    *,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(C)) v, with the softmax in float32.

    Args:
      query: [B, Q, H, C].
      key, value: [B, K, H, C].
      visible: bool [Q, K], True where a query sees a key; None: everything is seen.
      dropout_rate: share of attention weights that are dropped, drawn with `dropout_key`.

    Returns:
      [B, Q, H, C] in the dtype of the query.
    """
    mask = None if visible is None else visible[None, None]
    if dropout_rate == 0.0:
        return jax.nn.dot_product_attention(query, key, value, mask=mask)
    return nn.dot_product_attention(
        query,
        key,
        value,
        mask=mask,
        dropout_rng=dropout_key,
        dropout_rate=dropout_rate,
        broadcast_dropout=False,
        dtype=query.dtype,
        force_fp32_for_softmax=True,
    )


def causal(length: int) -> jax.Array:
    """bool [length, length]: position i sees positions 0..i."""
    return jnp.tril(jnp.ones((length, length), bool))
