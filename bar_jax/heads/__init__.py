"""From the transformer's output to one token. A new head of bits is one file here, a line in KINDS.

Real-valued tokens are written by `DiffusionHead`. What the masked-bit generator knows of a head of
bits:

    uniforms_per_token                  uniform draws that a token needs in training
    draws(uniform [..., U])             what `loss` needs of them
    loss(z, bits, draws, counted)       sums over tokens, of hidden states z [M, W] and bits [M, n]
    noise_shape(schedule)               uniform draws that a token needs in sampling
    sample(z, guidance, temperature, schedule, uniform)     bits [B, n] and the logits drawn from
"""

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from bar_jax.heads.bit import BitHead
from bar_jax.heads.diffusion import DiffusionHead
from bar_jax.heads.linear import LinearHead
from bar_jax.heads.masked_bit import MaskedBitHead


def _masked_bit(config: ConfigDict, bits: int, remat: bool) -> MaskedBitHead:
    head = config.model.head
    return MaskedBitHead(
        bits=bits,
        width=head.width,
        depth=head.depth,
        mask_ratio=head.mask_ratio,
        remat=remat,
        dtype=jnp.dtype(config.dtype),
    )


def _bit(config: ConfigDict, bits: int, remat: bool) -> BitHead:
    del remat  # nothing is kept that is worth it
    return BitHead(bits, config.model.head.width, dtype=jnp.dtype(config.dtype))


def _linear(config: ConfigDict, bits: int, remat: bool) -> LinearHead:
    del remat
    return LinearHead(bits, config.model.head.width, dtype=jnp.dtype(config.dtype))


# What each reads of `config.model.head`; xAR's `flow` is a part of xAR.
FIELDS = {
    "masked_bit": ("width", "depth", "mask_ratio"),
    "bit": ("width",),
    "linear": ("width",),
    "diffusion": ("width", "depth", "timesteps_per_token"),
    "flow": (),
}
KINDS = {"masked_bit": _masked_bit, "bit": _bit, "linear": _linear}


def make_head(config: ConfigDict, bits: int, remat: bool = False) -> nn.Module:
    """The head that a config describes, for tokens of `bits` bits; `remat` saves memory."""
    return KINDS[config.model.head.kind](config, bits, remat)


def make_diffusion_head(config: ConfigDict, channels: int, remat: bool = False) -> DiffusionHead:
    """The head that a config describes for real-valued tokens of `channels` numbers."""
    head = config.model.head
    return DiffusionHead(
        channels=channels,
        width=head.width,
        depth=head.depth,
        timesteps_per_token=head.timesteps_per_token,
        remat=remat,
        dtype=jnp.dtype(config.dtype),
    )
