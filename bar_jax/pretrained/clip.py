"""CLIP: the names of Hugging Face's files, and their arrays in our layout."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from bar_jax.nn.clip import CLIP
from bar_jax.pretrained.layout import Layout, count, layer_norm, linear, same, to_ours
from bar_jax.pretrained.outside import IMAGES, Network, array


def _tower(ours: str, theirs: str) -> Layout:
    """The blocks of a transformer."""
    ours, theirs = f"{ours}/blocks", f"{theirs}.encoder.layers.{{layer}}"
    return {
        **layer_norm(f"{ours}/attention_norm", f"{theirs}.layer_norm1"),
        f"{ours}/qkv/kernel": (
            f"{theirs}.self_attn.{{qkv}}_proj.weight",
            "layer qkv (heads c) i -> layer i qkv heads c",
        ),
        f"{ours}/qkv/bias": (
            f"{theirs}.self_attn.{{qkv}}_proj.bias",
            "layer qkv (heads c) -> layer qkv heads c",
        ),
        **linear(f"{ours}/out", f"{theirs}.self_attn.out_proj", inputs="heads c"),
        **layer_norm(f"{ours}/mlp_norm", f"{theirs}.layer_norm2"),
        **linear(f"{ours}/mlp/up", f"{theirs}.mlp.fc1"),
        **linear(f"{ours}/mlp/down", f"{theirs}.mlp.fc2"),
    }


VISION: Layout = {
    "patch_embedding/kernel": (
        "vision_model.embeddings.patch_embedding.weight",
        "d c p1 p2 -> (p1 p2 c) d",
    ),
    **same("vision/class_embedding", "vision_model.embeddings.class_embedding"),
    **same("vision/position_embedding", "vision_model.embeddings.position_embedding.weight"),
    **layer_norm("vision/pre_norm", "vision_model.pre_layrnorm"),  # sic
    **_tower("vision", "vision_model"),
    **layer_norm("vision/norm", "vision_model.post_layernorm"),
    "image_projection/kernel": ("visual_projection.weight", "o i -> i o"),
}
TEXT: Layout = {
    **same("token_embedding", "text_model.embeddings.token_embedding.weight"),
    **same("text/position_embedding", "text_model.embeddings.position_embedding.weight"),
    **_tower("text", "text_model"),
    **layer_norm("text/norm", "text_model.final_layer_norm"),
}
TEXT_PROJECTION: Layout = {"text_projection/kernel": ("text_projection.weight", "o i -> i o")}


def clip_params(
    tensors: Mapping[str, np.ndarray], *, heads: int = 16, text_heads: int = 12
) -> dict:
    """Parameters of `nn.clip.CLIP` from a state dict of Hugging Face's `CLIPModel`.

    The temperature, `logit_scale`, is not read: a cosine needs none.

    Raises:
      InputError: naming a tensor that is missing.
    """
    return {
        **_tower_params(tensors, VISION, "vision", heads),
        **_tower_params(tensors, TEXT | TEXT_PROJECTION, "text", text_heads),
    }


def clip_text_params(tensors: Mapping[str, np.ndarray], *, heads: int = 12) -> dict:
    """Those parameters of `nn.clip.CLIP` that `text_states` needs, of the same state dict.

    Raises:
      InputError: naming a tensor that is missing.
    """
    return _tower_params(tensors, TEXT, "text", heads)


def _tower_params(tensors, layout, tower, heads):
    depth = count(tensors, rf"{tower}_model\.encoder\.layers\.(\d+)\.")
    return to_ours(tensors, layout, {"layer": range(depth), "qkv": "qkv"}, heads=heads)


NETWORK = Network(
    file="model.safetensors",
    origin="huggingface.co/openai/clip-vit-large-patch14, see third_party/clip",
    module=CLIP(),
    importer=clip_params,
    manifest="clip/clip_vit_l14.json",
    inputs=(IMAGES, array(1, CLIP.context, dtype=jnp.int32)),
    outputs="image_outputs",
    resize="to 224 px: bicubic, antialiased, rounded to 8 bits",
)
