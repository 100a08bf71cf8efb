"""image <-> tokens. A new tokenizer is one file here and one line in KINDS."""

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from ml_collections import ConfigDict

from bar_jax.tokenizers.bar_fsq import BarFSQ


def _bar_fsq(config: ConfigDict, remat: bool) -> BarFSQ:
    tokenizer = config.model.tokenizer
    return BarFSQ(
        image_size=config.data.image_size,
        patch_size=tokenizer.patch_size,
        bits=tokenizer.bits,
        encoder=FrozenDict(tokenizer.encoder),
        decoder=FrozenDict(tokenizer.decoder),
        centered_bits=tokenizer.centered_bits,
        remat=remat,
        dtype=jnp.dtype(config.dtype),
    )


KINDS = {"bar_fsq": _bar_fsq}


def make_tokenizer(config: ConfigDict, remat: bool = False) -> nn.Module:
    """The tokenizer that a config describes; `remat` saves activation memory in training."""
    return KINDS[config.model.tokenizer.kind](config, remat)
