"""The published MAR models: their tensor names, and their arrays in our layout."""

from collections.abc import Mapping

import numpy as np

from bar_jax.generators.mar import MAR
from bar_jax.pretrained.layout import Layout, layer_norm, linear, same, to_ours, to_published

HEAD = "diffusion"  # of the published models
OPTIONAL = ""  # tensors that a file may lack

# A published table has one more axis in front.
_TABLE = "1 place d -> place d"

TOP: Layout = {
    **same("class_embedding", "class_emb.weight"),
    "no_class": ("fake_latent", "1 d -> d"),
    "mask_token": ("mask_token", "1 1 d -> d"),
    "encoder_positions": ("encoder_pos_embed_learned", _TABLE),
    "decoder_positions": ("decoder_pos_embed_learned", _TABLE),
    "output_positions": ("diffusion_pos_embed_learned", _TABLE),
    **linear("token_proj", "z_proj"),
    **layer_norm("token_norm", "z_proj_ln"),
    **linear("decoder_proj", "decoder_embed"),
}


def transformer_layout(part: str) -> Layout:
    """The `encoder` or the `decoder`."""
    block = f"{part}_blocks.{{layer}}"
    return {
        **layer_norm("blocks/attention_norm", f"{block}.norm1"),
        **layer_norm("blocks/mlp_norm", f"{block}.norm2"),
        **linear("blocks/qkv", f"{block}.attn.qkv", outputs="three heads c"),
        **linear("blocks/out", f"{block}.attn.proj", inputs="heads c"),
        **linear("blocks/mlp/up", f"{block}.mlp.fc1"),
        **linear("blocks/mlp/down", f"{block}.mlp.fc2"),
        **layer_norm("norm", f"{part}_norm"),
    }


def head_layout(prefix: str = "") -> Layout:
    """The diffusion head, whose published names start with `prefix`."""
    block = f"{prefix}res_blocks.{{layer}}"
    return {
        **linear("time_embedding/first", f"{prefix}time_embed.mlp.0"),
        **linear("time_embedding/second", f"{prefix}time_embed.mlp.2"),
        **linear("condition_proj", f"{prefix}cond_embed"),
        **linear("in_proj", f"{prefix}input_proj"),
        **layer_norm("blocks/norm", f"{block}.in_ln"),
        **linear("blocks/mlp_in", f"{block}.mlp.0"),
        **linear("blocks/mlp_out", f"{block}.mlp.2"),
        **linear("blocks/adaln", f"{block}.adaLN_modulation.1", outputs="three o"),
        **linear("out_adaln", f"{prefix}final_layer.adaLN_modulation.1", outputs="two o"),
        **linear("out_proj", f"{prefix}final_layer.linear", outputs="two o"),
    }


def head_params(tensors: Mapping[str, np.ndarray], depth: int, prefix: str = "") -> dict:
    """Parameters of `DiffusionHead` from published tensors whose names start with `prefix`.

    Raises:
      InputError: naming a tensor that is missing.
    """
    return to_ours(tensors, head_layout(prefix), {"layer": range(depth)}, two=2, three=3)


def params_of(tensors: Mapping[str, np.ndarray], mar: MAR) -> dict:
    """Parameters of `mar`, see `generator_params`."""
    parts = mar.encoder, mar.decoder
    depths, heads = (tuple(getattr(part, size) for part in parts) for size in ("depth", "heads"))
    return generator_params(tensors, depths=depths, heads=heads, head_depth=mar.head.depth)


def generator_params(
    tensors: Mapping[str, np.ndarray],
    *,
    depths: tuple[int, int],
    heads: tuple[int, int],
    head_depth: int,
) -> dict:
    """Parameters of `MAR` from a published state dict.

    Args:
      tensors: published names -> arrays.
      depths, heads: layers and attention heads of the encoder and of the decoder.
      head_depth: layers of the diffusion head.

    Raises:
      InputError: naming a tensor that is missing.
    """
    parts = {
        part: to_ours(
            tensors, transformer_layout(part), {"layer": range(depth)}, heads=count, three=3
        )
        for part, depth, count in zip(("encoder", "decoder"), depths, heads, strict=True)
    }
    head = head_params(tensors, head_depth, "diffloss.net.")
    return to_ours(tensors, TOP, {}) | parts | {"head": head}


def tensors_of(params: dict, _: MAR | None = None) -> dict[str, np.ndarray]:
    """The inverse of `params_of`: a whole published state dict."""
    tensors = to_published(params, TOP, {})
    for part in ("encoder", "decoder"):
        depth = len(params[part]["blocks"]["out"]["bias"])
        tensors |= to_published(params[part], transformer_layout(part), {"layer": range(depth)})
    depth = len(params["head"]["blocks"]["mlp_in"]["bias"])
    layout = head_layout("diffloss.net.")
    return tensors | to_published(params["head"], layout, {"layer": range(depth)})
