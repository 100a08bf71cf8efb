"""Qwen2: the names of Hugging Face's files, and their arrays in our layout."""

from collections.abc import Mapping

import numpy as np

from bar_jax.pretrained.layout import Layout, count, same, to_ours

_BLOCK = "layers.{layer}"


def _kernel(ours: str, theirs: str, axes: str) -> Layout:
    return {f"blocks/{ours}/kernel": (f"{_BLOCK}.{theirs}.weight", axes)}


def _rotated(ours: str, theirs: str) -> Layout:
    """Queries or keys: published channel c turns with c + C / 2, ours with its neighbour."""
    theirs = f"{_BLOCK}.self_attn.{theirs}_proj"
    return {
        f"blocks/{ours}/kernel": (
            f"{theirs}.weight",
            "layer (heads two half) i -> layer i heads (half two)",
        ),
        f"blocks/{ours}/bias": (
            f"{theirs}.bias",
            "layer (heads two half) -> layer heads (half two)",
        ),
    }


LAYOUT: Layout = {
    **same("token_embedding", "embed_tokens.weight"),
    **same("blocks/attention_norm/scale", f"{_BLOCK}.input_layernorm.weight"),
    **_kernel("value", "self_attn.v_proj", "layer (kv_heads c) i -> layer i kv_heads c"),
    "blocks/value/bias": (
        f"{_BLOCK}.self_attn.v_proj.bias",
        "layer (kv_heads c) -> layer kv_heads c",
    ),
    **_kernel("out", "self_attn.o_proj", "layer o (heads c) -> layer heads c o"),
    **same("blocks/mlp_norm/scale", f"{_BLOCK}.post_attention_layernorm.weight"),
    **_kernel("gate", "mlp.gate_proj", "layer o i -> layer i o"),
    **_kernel("up", "mlp.up_proj", "layer o i -> layer i o"),
    **_kernel("down", "mlp.down_proj", "layer o i -> layer i o"),
    **same("norm/scale", "norm.weight"),
}


def qwen2_params(tensors: Mapping[str, np.ndarray], *, heads: int, kv_heads: int) -> dict:
    """Parameters of `nn.qwen2.Qwen2` from a state dict of Hugging Face's `Qwen2Model`.

    Raises:
      InputError: naming a tensor that is missing.
    """
    layers = {"layer": range(count(tensors, r"layers\.(\d+)\."))}
    params = to_ours(tensors, LAYOUT, layers, heads=heads, kv_heads=kv_heads)
    queries = to_ours(tensors, _rotated("query", "q"), layers, heads=heads, two=2)
    keys = to_ours(tensors, _rotated("key", "k"), layers, heads=kv_heads, two=2)
    params["blocks"] |= queries["blocks"] | keys["blocks"]
    return params
