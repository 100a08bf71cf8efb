"""From the transformer's output to one token. A new head is one file here and a line in KINDS.

What the generators know of a head:

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


KINDS = {"masked_bit": _masked_bit, "bit": _bit, "linear": _linear}


def make_head(config: ConfigDict, bits: int, remat: bool = False) -> nn.Module:
    """The head that a config describes, for tokens of `bits` bits; `remat` saves memory."""
    return KINDS[config.model.head.kind](config, bits, remat)
