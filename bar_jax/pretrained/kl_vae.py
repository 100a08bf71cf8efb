"""The published KL-16 autoencoder: its tensor names, and its arrays in our layout."""

from collections.abc import Mapping

import numpy as np

from bar_jax.pretrained.layout import Layout, conv, layer_norm, same, to_ours, to_published
from bar_jax.tokenizers.kl_vae import KLVAE

OPTIONAL = ""  # tensors that a file may lack
NOT_READ = ()


def params_of(tensors: Mapping[str, np.ndarray], vae: KLVAE, seed: int = 0) -> dict:
    """Parameters of `vae` from a published state dict.

    Args:
      tensors: published names -> arrays.
      seed: not used; nothing is drawn.

    Raises:
      InputError: naming a tensor that is missing.
    """
    return to_ours(tensors, layout(vae), {})


def tensors_of(params: Mapping, vae: KLVAE) -> dict[str, np.ndarray]:
    """The inverse of `params_of`: a whole published state dict."""
    return to_published(params, layout(vae), {})


def layout(vae: KLVAE) -> Layout:
    """Where each parameter of an autoencoder stands in the published state dict."""
    found = _product("to_moments", "quant_conv") | _product("from_latents", "post_quant_conv")
    before = 1  # the multiplier of what comes in
    for level, multiplier in enumerate(vae.multipliers):
        ours, theirs = f"encoder/level{level}", f"encoder.down.{level}"
        if level:
            found |= conv(f"encoder/down{level}", f"encoder.down.{level - 1}.downsample.conv")
        for block in range(vae.blocks):
            widens = multiplier != before
            found |= _block(f"{ours}_block{block}", f"{theirs}.block.{block}", widens)
            if level in vae.attention_levels:
                found |= _attention(f"{ours}_attention{block}", f"{theirs}.attn.{block}")
            before = multiplier
    for level in reversed(range(len(vae.multipliers))):
        ours, theirs = f"decoder/level{level}", f"decoder.up.{level}"
        for block in range(vae.blocks + 1):
            narrows = vae.multipliers[level] != before
            found |= _block(f"{ours}_block{block}", f"{theirs}.block.{block}", narrows)
            before = vae.multipliers[level]
        if level:
            found |= conv(f"decoder/up{level}", f"{theirs}.upsample.conv")
    for half in ("encoder", "decoder"):
        found |= conv(f"{half}/conv_in", f"{half}.conv_in")
        found |= _block(f"{half}/middle_block0", f"{half}.mid.block_1", shortcut=False)
        found |= _attention(f"{half}/middle_attention", f"{half}.mid.attn_1")
        found |= _block(f"{half}/middle_block1", f"{half}.mid.block_2", shortcut=False)
        found |= layer_norm(f"{half}/norm_out", f"{half}.norm_out")
        found |= conv(f"{half}/conv_out", f"{half}.conv_out")
    return found


def _block(ours: str, theirs: str, shortcut: bool) -> Layout:
    return {
        **layer_norm(f"{ours}/norm1", f"{theirs}.norm1"),
        **conv(f"{ours}/conv1", f"{theirs}.conv1"),
        **layer_norm(f"{ours}/norm2", f"{theirs}.norm2"),
        **conv(f"{ours}/conv2", f"{theirs}.conv2"),
        **(_product(f"{ours}/shortcut", f"{theirs}.nin_shortcut") if shortcut else {}),
    }


def _attention(ours: str, theirs: str) -> Layout:
    return {
        **layer_norm(f"{ours}/norm", f"{theirs}.norm"),
        **_product(f"{ours}/query", f"{theirs}.q"),
        **_product(f"{ours}/key", f"{theirs}.k"),
        **_product(f"{ours}/value", f"{theirs}.v"),
        **_product(f"{ours}/out", f"{theirs}.proj_out"),
    }


def _product(ours: str, theirs: str) -> Layout:
    """A 1x1 convolution there, a linear layer here."""
    kernel = (f"{theirs}.weight", "o i 1 1 -> i o")
    return {f"{ours}/kernel": kernel, **same(f"{ours}/bias", f"{theirs}.bias")}
