"""The published xAR models: their tensor names, and their arrays in our layout."""

from collections.abc import Mapping

import numpy as np

from bar_jax.generators.xar import XAR
from bar_jax.nn.rotary import BASE, axial_table
from bar_jax.pretrained.layout import Layout, linear, same, to_ours, to_published

HEAD = "flow"  # of the published models
OPTIONAL = r"mask|.*\.attn\.rope\.\w+"  # tensors that a file may lack: the buffers


def _block(part: str) -> Layout:
    """The layers of `encoder` or `decoder`."""
    ours, theirs = f"{part}_blocks", f"{part}_blocks.{{{part}_layer}}"
    return {
        **linear(f"{ours}/qkv", f"{theirs}.attn.qkv", outputs="three heads c"),
        **linear(f"{ours}/out", f"{theirs}.attn.proj", inputs="heads c"),
        **linear(f"{ours}/mlp/gate", f"{theirs}.mlp.fc1_g"),
        **linear(f"{ours}/mlp/value", f"{theirs}.mlp.fc1_x"),
        **linear(f"{ours}/mlp/down", f"{theirs}.mlp.fc2"),
        **linear(f"{ours}/adaln", f"{theirs}.ada_lin.1", outputs="six o"),
    }


LAYOUT: Layout = {
    "encoder_positions": ("encoder_pos_embed_learned", "1 n d -> n d"),
    "decoder_positions": ("decoder_pos_embed_learned", "1 n d -> n d"),
    **same("class_embedding", "class_emb.weight"),
    **linear("time_embedding/first", "time_embed.mlp.0"),
    **linear("time_embedding/second", "time_embed.mlp.2"),
    **linear("in_proj", "z_proj"),
    **same("in_norm/scale", "z_proj_ln.weight"),
    **same("encoder_norm/scale", "encoder_norm.weight"),
    **linear("decoder_proj", "decoder_embed"),
    **same("decoder_norm/scale", "decoder_norm.weight"),
    **linear("out_proj", "pred"),
    **_block("encoder"),
    **_block("decoder"),
}


def params_of(tensors: Mapping[str, np.ndarray], host: XAR) -> dict:
    """Parameters of `host`, see `xar_params`."""
    decoder_depth = host.decoder_depth or host.depth
    return xar_params(tensors, depth=host.depth, decoder_depth=decoder_depth, heads=host.heads)


def xar_params(
    tensors: Mapping[str, np.ndarray], *, depth: int, decoder_depth: int, heads: int
) -> dict:
    """Parameters of `XAR` from a published state dict; its buffers are not read.

    Raises:
      InputError: naming a tensor that is missing.
    """
    layers = {"encoder_layer": range(depth), "decoder_layer": range(decoder_depth)}
    return to_ours(tensors, LAYOUT, layers, heads=heads, three=3, six=6)


def tensors_of(params: Mapping, host: XAR) -> dict[str, np.ndarray]:
    """The inverse of `params_of`: a whole published state dict, with its buffers."""
    layers = {
        f"{part}_layer": range(params[f"{part}_blocks"]["out"]["bias"].shape[0])
        for part in ("encoder", "decoder")
    }
    return {**to_published(params, LAYOUT, layers), **buffers(host, layers)}


def buffers(host: XAR, layers: Mapping[str, range] | None = None) -> dict[str, np.ndarray]:
    """What a published file holds besides parameters: the mask, and tables of every layer."""
    layers = layers or {
        "encoder_layer": range(host.depth),
        "decoder_layer": range(host.decoder_depth or host.depth),
    }
    half = host.width // host.heads // 2
    frequencies = BASE ** (-np.arange(0, half, 2, dtype=np.float64) / half)
    # In numpy: names and shapes are asked for while parameters are being traced.
    tables = axial_table(host.grid, host.width // host.heads)
    cos, sin = (np.asarray(table, np.float32)[host.native_order] for table in tables)
    tables = {"freqs": frequencies.astype(np.float32), "freqs_cos": cos, "freqs_sin": sin}
    mask = np.where(host.block_causal(), np.float32(0), np.float32(-np.inf))
    found = {"mask": mask[None, None]}
    for part in ("encoder", "decoder"):
        for i in layers[f"{part}_layer"]:
            prefix = f"{part}_blocks.{i}.attn.rope"
            found |= {f"{prefix}.{name}": table for name, table in tables.items()}
    return found
