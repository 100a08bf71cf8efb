"""BERT: the names of Hugging Face's files, and their arrays in our layout."""

from collections.abc import Mapping

import numpy as np

from bar_jax.pretrained.layout import Layout, count, layer_norm, linear, same, to_ours

_BLOCK = "encoder.layer.{layer}"
LAYOUT: Layout = {
    **same("token_embedding", "embeddings.word_embeddings.weight"),
    **same("position_embedding", "embeddings.position_embeddings.weight"),
    **same("sentence_embedding", "embeddings.token_type_embeddings.weight"),
    **layer_norm("norm", "embeddings.LayerNorm"),
    "blocks/qkv/kernel": (
        f"{_BLOCK}.attention.self.{{qkv}}.weight",
        "layer qkv (heads c) i -> layer i qkv heads c",
    ),
    "blocks/qkv/bias": (
        f"{_BLOCK}.attention.self.{{qkv}}.bias",
        "layer qkv (heads c) -> layer qkv heads c",
    ),
    **linear("blocks/out", f"{_BLOCK}.attention.output.dense", inputs="heads c"),
    **layer_norm("blocks/attention_norm", f"{_BLOCK}.attention.output.LayerNorm"),
    **linear("blocks/mlp/up", f"{_BLOCK}.intermediate.dense"),
    **linear("blocks/mlp/down", f"{_BLOCK}.output.dense"),
    **layer_norm("blocks/mlp_norm", f"{_BLOCK}.output.LayerNorm"),
}


def bert_params(tensors: Mapping[str, np.ndarray], *, heads: int) -> dict:
    """Parameters of `nn.bert.BERT` from a state dict of Hugging Face's `BertModel`.

    The pooler is not read.

    Raises:
      InputError: naming a tensor that is missing.
    """
    fields = {
        "layer": range(count(tensors, r"encoder\.layer\.(\d+)\.")),
        "qkv": ("query", "key", "value"),
    }
    return to_ours(tensors, LAYOUT, fields, heads=heads)
