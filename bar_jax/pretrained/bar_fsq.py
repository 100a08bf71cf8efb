"""The published BAR-FSQ tokenizers: their tensor names, and their arrays in our layout.

Read are the decoder, the quantizer and the trained copy of the SigLIP2 encoder on top of the
embeddings that both copies share. The rest of a file (NOT_READ) serves the training of the
tokenizer: the frozen encoder (stored twice), its unused pooling head, the feature predictor.
"""

import math
from collections.abc import Mapping

import jax
import numpy as np

from bar_jax.errors import InputError
from bar_jax.pretrained.layout import (
    Layout,
    layer_norm,
    linear,
    same,
    to_ours,
    to_published,
)

NOT_READ = (
    "encoder.siglip.encoder.",
    "encoder.siglip.post_layernorm.",
    "encoder.siglip.head.",
    "encoder.frozen_encoder.",
    "encoder.frozen_post_layernorm.",
    "decoder.clip_projector.",
)
POSITIONS = "encoder.siglip.embeddings.position_embedding.weight"

_ENCODER = "encoder.trainable_encoder.layers.{layer}"
ENCODER: Layout = {
    **linear("patch_embedding", "encoder.siglip.embeddings.patch_embedding"),
    **layer_norm("encoder_vit/blocks/attention_norm", f"{_ENCODER}.layer_norm1"),
    "encoder_vit/blocks/qkv/kernel": (
        f"{_ENCODER}.self_attn.{{qkv}}_proj.weight",
        "layer qkv (heads c) i -> layer i qkv heads c",
    ),
    "encoder_vit/blocks/qkv/bias": (
        f"{_ENCODER}.self_attn.{{qkv}}_proj.bias",
        "layer qkv (heads c) -> layer qkv heads c",
    ),
    **linear("encoder_vit/blocks/out", f"{_ENCODER}.self_attn.out_proj", inputs="heads c"),
    **layer_norm("encoder_vit/blocks/mlp_norm", f"{_ENCODER}.layer_norm2"),
    **linear("encoder_vit/blocks/mlp/up", f"{_ENCODER}.mlp.fc1"),
    **linear("encoder_vit/blocks/mlp/down", f"{_ENCODER}.mlp.fc2"),
    **layer_norm("encoder_vit/norm", "encoder.trainable_post_layernorm"),
}

_DECODER = "decoder.transformer.{layer}"
DECODER: Layout = {
    **linear("quantizer/in_proj", "quantize.in_proj"),
    **linear("quantizer/out_proj", "quantize.out_proj"),
    "decoder_vit/class_embedding": ("decoder.class_embedding", "1 d -> d"),
    **same("decoder_vit/position_embedding", "decoder.positional_embedding"),
    **layer_norm("decoder_vit/pre_norm", "decoder.ln_pre"),
    **layer_norm("decoder_vit/blocks/attention_norm", f"{_DECODER}.norm1"),
    **linear("decoder_vit/blocks/qkv", f"{_DECODER}.attn.qkv", outputs="three heads c"),
    **linear("decoder_vit/blocks/out", f"{_DECODER}.attn.proj", inputs="heads c"),
    **layer_norm("decoder_vit/blocks/mlp_norm", f"{_DECODER}.norm2"),
    **linear("decoder_vit/blocks/mlp/up", f"{_DECODER}.mlp.fc1"),
    **linear("decoder_vit/blocks/mlp/down", f"{_DECODER}.mlp.fc2"),
    **layer_norm("decoder_vit/norm", "decoder.ln_post"),
    "to_pixels/kernel": ("decoder.ffn.0.weight", "o i 1 1 -> i o"),
    **same("to_pixels/bias", "decoder.ffn.0.bias"),
    "pixel_conv/kernel": ("decoder.conv_out.weight", "o i kh kw -> kh kw i o"),
    **same("pixel_conv/bias", "decoder.conv_out.bias"),
}


def tokenizer_params(
    tensors: Mapping[str, np.ndarray],
    *,
    grid: tuple[int, int],
    encoder_depth: int,
    encoder_heads: int,
    decoder_depth: int,
    decoder_heads: int,
) -> dict:
    """Parameters of `BarFSQ` from a published state dict.

    Args:
      tensors: published names -> arrays.
      grid: rows and columns of tokens, to which the encoder's position table is resized.

    Raises:
      InputError: naming a tensor that is missing, or a position table that is not square.
    """
    fields = {"layer": range(encoder_depth), "qkv": "qkv"}
    params = to_ours(tensors, ENCODER, fields, heads=encoder_heads)
    fields = {"layer": range(decoder_depth)}
    params |= to_ours(tensors, DECODER, fields, heads=decoder_heads, three=3)
    if POSITIONS not in tensors:
        raise InputError("weights", f"no tensor {POSITIONS}", "the published model's tensors")
    params["encoder_vit"]["position_embedding"] = resize_positions(tensors[POSITIONS], grid)
    return params


def resize_positions(table: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Positions of a square grid [S * S, D] for another grid [h * w, D], both in raster order.

    Bilinear with antialiasing, as SigLIP2's NaFlex models resize theirs.
    """
    side = math.isqrt(len(table))
    if side**2 != len(table):
        raise InputError(POSITIONS, f"{len(table)} positions", "those of a square grid")
    table = np.asarray(table)
    square = table.reshape(side, side, -1)
    resized = jax.image.resize(square, (*grid, table.shape[1]), "linear", antialias=True)
    return np.asarray(resized).reshape(-1, table.shape[1])


def tokenizer_shapes(params: dict) -> dict[str, tuple[int | None, ...]]:
    """Published names and shapes of the tensors that `tokenizer_params` reads.

    Args:
      params: arrays or `jax.ShapeDtypeStruct`s of a `BarFSQ`.

    Returns:
      name -> shape; None where any size will do (the position table is resized).
    """
    depth = {
        part: params[f"{part}_vit"]["blocks"]["qkv"]["bias"].shape[0]
        for part in ("encoder", "decoder")
    }

    def tensors(params):
        fields = {"layer": range(depth["encoder"]), "qkv": "qkv"}
        encoder = to_published(params, ENCODER, fields)
        return encoder | to_published(params, DECODER, {"layer": range(depth["decoder"])})

    read = {name: tensor.shape for name, tensor in jax.eval_shape(tensors, params).items()}
    return read | {POSITIONS: (None, params["patch_embedding"]["bias"].shape[0])}
