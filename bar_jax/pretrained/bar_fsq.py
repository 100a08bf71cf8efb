"""The published BAR-FSQ tokenizers: their tensor names, and their arrays in our layout.

What is read: the decoder with its feature predictor, where the file has one, the quantizer, and the
trained copy of the SigLIP2 encoder on top of the embeddings that both copies share. The rest of a
file (NOT_READ) is not part of a tokenizer here: the frozen copy, stored twice, which
`pretrained.siglip2` reads, and its pooling head, which nothing uses.
"""

import logging
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bar_jax.pretrained import siglip2
from bar_jax.pretrained.layout import Layout, layer_norm, linear, same, to_ours, to_published
from bar_jax.tokenizers.bar_fsq import BarFSQ

logger = logging.getLogger(__name__)

NOT_READ = (
    "encoder.siglip.encoder.",
    "encoder.siglip.post_layernorm.",
    "encoder.siglip.head.",
    "encoder.frozen_encoder.",
    "encoder.frozen_post_layernorm.",
)
PREDICTOR_PREFIX = "decoder.clip_projector."
OPTIONAL = r"decoder\.clip_projector\..*"  # which training alone uses
DECODER_POSITIONS = "decoder.positional_embedding"

ENCODER = siglip2.encoder_layout(
    "encoder.siglip.embeddings",
    "encoder.trainable_encoder.layers",
    "encoder.trainable_post_layernorm",
)
QUANTIZER: Layout = {
    **linear("quantizer/in_proj", "quantize.in_proj"),
    **linear("quantizer/out_proj", "quantize.out_proj"),
}
_DECODER = "decoder.transformer.{layer}"
DECODER: Layout = {
    "decoder_vit/class_embedding": ("decoder.class_embedding", "1 d -> d"),
    **same("decoder_vit/position_embedding", DECODER_POSITIONS),
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
PREDICTOR: Layout = {
    **linear("feature_predictor/first", f"{PREDICTOR_PREFIX}0"),
    **linear("feature_predictor/second", f"{PREDICTOR_PREFIX}2"),
    **linear("feature_predictor/third", f"{PREDICTOR_PREFIX}4"),
}


def params_of(tensors: Mapping[str, np.ndarray], tokenizer: BarFSQ, seed: int) -> dict:
    """Parameters of `tokenizer` as numpy arrays.

    The feature predictor, which a file may lack, is then drawn from `seed`.
    """
    params = tokenizer_params(
        tensors,
        encoder_depth=tokenizer.encoder["depth"],
        encoder_heads=tokenizer.encoder["heads"],
        decoder_depth=tokenizer.decoder["depth"],
        decoder_heads=tokenizer.decoder["heads"],
    )
    if not tokenizer.predictor_width:
        params.pop("feature_predictor", None)
    elif "feature_predictor" not in params:
        logger.info("tokenizer: no feature predictor in the file; a new one, for training alone")
        inner = jnp.zeros((1, 1, tokenizer.decoder["width"]))
        fresh = tokenizer.init(jax.random.key(seed), inner, method=tokenizer.predict_features)
        params |= jax.tree.map(np.asarray, nn.unbox(fresh)["params"])
    return params


def tokenizer_params(
    tensors: Mapping[str, np.ndarray],
    *,
    encoder_depth: int,
    encoder_heads: int,
    decoder_depth: int,
    decoder_heads: int,
) -> dict:
    """Parameters of `BarFSQ` from a published state dict.

    Args:
      tensors: published names -> arrays.

    Returns:
      The tree; without `feature_predictor` where there are no tensors of one.

    Raises:
      InputError: naming a tensor that is missing.
    """
    return {
        **encoder_params(tensors, depth=encoder_depth, heads=encoder_heads),
        **to_ours(tensors, QUANTIZER, {}),
        **decoder_params(tensors, depth=decoder_depth, heads=decoder_heads),
    }


def encoder_params(tensors: Mapping[str, np.ndarray], *, depth: int, heads: int) -> dict:
    """The encoder's part of `tokenizer_params`: patch_embedding and encoder_vit."""
    return to_ours(tensors, ENCODER, siglip2.fields(depth), heads=heads)


def decoder_params(tensors: Mapping[str, np.ndarray], *, depth: int, heads: int) -> dict:
    """The decoder's part of `tokenizer_params`: what its input and its output meet, and between."""
    params = to_ours(tensors, DECODER, {"layer": range(depth)}, heads=heads, three=3)
    if any(name.startswith(PREDICTOR_PREFIX) for name in tensors):
        params |= to_ours(tensors, PREDICTOR, {})
    return params


def tensors_of(params: Mapping, _: BarFSQ | None = None) -> dict[str, np.ndarray]:
    """The inverse of `params_of`: all that a tokenizer here has, under published names.

    The published code loads it with `strict=False`, as it loads its own files.
    """
    encoder, decoder = (
        params[f"{part}_vit"]["blocks"]["qkv"]["bias"].shape[0] for part in ("encoder", "decoder")
    )
    tensors = to_published(params, ENCODER, siglip2.fields(encoder))
    tensors |= to_published(params, QUANTIZER, {})
    tensors |= to_published(params, DECODER, {"layer": range(decoder)})
    if "feature_predictor" in params:
        tensors |= to_published(params, PREDICTOR, {})
    return tensors
