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
    causal: bool = False,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(C)) v, with the softmax in float32.

    On GPU, attention over whole sequences in half precision is cuDNN's, which never holds the
    [Q, K] weights.

    Args:
      query: [B, Q, H, C].
      key, value: [B, K, H, C].
      visible: bool [Q, K], True where a query sees a key; None: everything is seen.
      causal: position i sees positions 0..i (Q = K; instead of `visible`).
      dropout_rate: share of attention weights that are dropped, drawn with `dropout_key`.

    Returns:
      [B, Q, H, C] in the dtype of the query.
    """
    if dropout_rate == 0.0:
        mask = None if visible is None else visible[None, None]
        fused = mask is None and _cudnn_takes(query)
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            mask=mask,
            is_causal=causal,
            implementation="cudnn" if fused else "xla",
        )
    if causal:
        visible = jnp.tril(jnp.ones((query.shape[1], key.shape[1]), bool))
    return nn.dot_product_attention(
        query,
        key,
        value,
        mask=None if visible is None else visible[None, None],
        dropout_rng=dropout_key,
        dropout_rate=dropout_rate,
        broadcast_dropout=False,
        dtype=query.dtype,
        force_fp32_for_softmax=True,
    )


def _cudnn_takes(query: jax.Array) -> bool:
    """Whether cuDNN's fused attention takes heads like these."""
    head_dim = query.shape[-1]
    fits = head_dim <= 128 and head_dim % 8 == 0
    return fits and query.dtype == jnp.bfloat16 and _has_fused_attention()


def _has_fused_attention() -> bool:
    """Whether the devices are NVIDIA's, of the Ampere generation or newer."""
    if jax.default_backend() != "gpu":
        return False
    device = jax.devices()[0]
    cuda = "cuda" in device.client.platform_version.lower()
    return cuda and float(device.compute_capability) >= 8.0
