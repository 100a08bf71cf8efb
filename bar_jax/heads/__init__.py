"""From the transformer's output to one token. A new head is one file here and a line in KINDS."""

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from bar_jax.heads.masked_bit import MaskedBitHead


def _masked_bit(config: ConfigDict, bits: int) -> MaskedBitHead:
    head = config.model.head
    return MaskedBitHead(
        bits=bits,
        width=head.width,
        depth=head.depth,
        mask_ratio=head.mask_ratio,
        dtype=jnp.dtype(config.dtype),
    )


KINDS = {"masked_bit": _masked_bit}


def make_head(config: ConfigDict, bits: int) -> nn.Module:
    """The head that a config describes, for tokens of `bits` bits."""
    return KINDS[config.model.head.kind](config, bits)
