"""The published masked-bit generators: their tensor names, and their arrays in our layout."""

from collections.abc import Mapping

import numpy as np

from bar_jax.generators.masked_bit import MaskedBitGenerator
from bar_jax.nn.rotary import axial_table
from bar_jax.pretrained.layout import Layout, linear, same, to_ours, to_published

HEAD = "masked_bit"  # of the published models
OPTIONAL = r"blocks\.\d+\.attn\.rope\.freqs_(cos|sin)"  # tensors that a file may lack: ROTARY

# A published table has one more axis in front.
_TABLE = "1 place d -> place d"
_BLOCK = "blocks.{layer}"

TRUNK: Layout = {
    "start": ("cls_token", "1 1 d -> d"),
    "own_place_embedding": ("pos_embed", _TABLE),
    "target_place_embedding": ("target_aware_pos_embed", _TABLE),
    "adaln_index_embedding": ("timesteps_embeddings", _TABLE),
    **same("class_embedding", "embeddings.weight"),
    **same("bit_embedding", "input_embeddings.weight"),
    **linear("token_proj", "input_merge"),
    **same("norm/scale", "norm.weight"),
    **linear("output_proj", "latent_condition_proj"),
    **same("blocks/attention_norm/scale", f"{_BLOCK}.norm1.weight"),
    **same("blocks/mlp_norm/scale", f"{_BLOCK}.norm2.weight"),
    **same("blocks/query_norm/scale", f"{_BLOCK}.attn.q_norm.weight"),
    **same("blocks/key_norm/scale", f"{_BLOCK}.attn.k_norm.weight"),
    **linear("blocks/qkv", f"{_BLOCK}.attn.qkv", outputs="three heads c"),
    **linear("blocks/out", f"{_BLOCK}.attn.proj", inputs="heads c"),
    **linear("blocks/mlp/up", f"{_BLOCK}.mlp.w12", outputs="two o"),
    **linear("blocks/mlp/down", f"{_BLOCK}.mlp.w3"),
    **linear("blocks/adaln", f"{_BLOCK}.adaLN_modulation.1", outputs="six o"),
}
# Buffers of each layer, the same in all.
ROTARY = (f"{_BLOCK}.attn.rope.freqs_cos", f"{_BLOCK}.attn.rope.freqs_sin")


def head_layout(prefix: str = "") -> Layout:
    """The masked-bit head, whose published names start with `prefix`."""
    block = f"{prefix}transformer.{{layer}}"
    return {
        **same("bit_embedding", f"{prefix}input_embed.weight"),
        **linear("in_proj", f"{prefix}input_proj"),
        **same("in_norm/scale", f"{prefix}ln_pre.weight"),
        **same("time_embed_frequencies", f"{prefix}t_embedder.W"),
        **linear("time_embed_in", f"{prefix}t_embedder.mlp.0"),
        **linear("time_embed_out", f"{prefix}t_embedder.mlp.2"),
        **same("blocks/norm/scale", f"{block}.in_ln.weight"),
        **linear("blocks/mlp/up", f"{block}.mlp.w12", outputs="two o"),
        **linear("blocks/mlp/down", f"{block}.mlp.w3"),
        **linear("blocks/adaln", f"{block}.adaLN_modulation.1", outputs="three o"),
        **same("out_norm/scale", f"{prefix}adaln_before_head.norm_final.weight"),
        **linear("out_adaln", f"{prefix}adaln_before_head.adaLN_modulation.1", outputs="two o"),
        **linear("out_embed", f"{prefix}output_embed", outputs="o two"),
    }


def head_params(tensors: Mapping[str, np.ndarray], depth: int, prefix: str = "") -> dict:
    """Parameters of `MaskedBitHead` from published tensors whose names start with `prefix`.

    Raises:
      InputError: naming a tensor that is missing.
    """
    return to_ours(tensors, head_layout(prefix), {"layer": range(depth)}, two=2, three=3)


def params_of(tensors: Mapping[str, np.ndarray], generator: MaskedBitGenerator) -> dict:
    """Parameters of `generator`, see `generator_params`."""
    trunk, head_depth = generator.trunk, generator.head.depth
    return generator_params(tensors, depth=trunk.depth, heads=trunk.heads, head_depth=head_depth)


def tensors_of(params: dict, generator: MaskedBitGenerator) -> dict[str, np.ndarray]:
    """See `generator_tensors`."""
    return generator_tensors(params, grid=generator.trunk.grid, prefix=generator.trunk.prefix)


def generator_params(
    tensors: Mapping[str, np.ndarray], *, depth: int, heads: int, head_depth: int
) -> dict:
    """Parameters of `MaskedBitGenerator` from a published state dict.

    Args:
      tensors: published names -> arrays. Tables of the rotary embedding are not read.
      depth, heads: of the trunk.
      head_depth: layers of the head.

    Raises:
      InputError: naming a tensor that is missing.
    """
    layers = {"layer": range(depth)}
    return {
        "trunk": to_ours(tensors, TRUNK, layers, heads=heads, two=2, three=3, six=6),
        "head": head_params(tensors, head_depth, "lm_head."),
    }


def generator_tensors(params: dict, *, grid: tuple[int, int], prefix: int) -> dict:
    """The inverse of `generator_params`: a whole published state dict, rotary tables included.

    Args:
      grid: rows and columns of tokens, after token shuffling.
      prefix: positions in front of the tokens (the start vector and the class copies).
    """
    trunk, head = params["trunk"], params["head"]
    depth, head_depth = (len(part["blocks"]["mlp"]["up"]["bias"]) for part in (trunk, head))
    return {
        **to_published(trunk, TRUNK, {"layer": range(depth)}),
        **to_published(head, head_layout("lm_head."), {"layer": range(head_depth)}),
        **rotary_tensors(params, grid=grid, prefix=prefix),
    }


def rotary_tensors(params: dict, *, grid: tuple[int, int], prefix: int) -> dict[str, np.ndarray]:
    """The tables of the rotary embedding under their published names; see `generator_tensors`."""
    depth, *_, head_dim = params["trunk"]["blocks"]["qkv"]["kernel"].shape
    tables = axial_table(grid, head_dim, prefix)
    return {
        name.format(layer=i): table
        for name, table in zip(ROTARY, tables, strict=True)
        for i in range(depth)
    }
