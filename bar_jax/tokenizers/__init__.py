"""image <-> tokens. A new tokenizer is one file here and one line in KINDS."""

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from ml_collections import ConfigDict

from bar_jax.tokenizers.bar_fsq import BarFSQ

SIZES = ("width", "depth", "heads", "mlp_width")  # of a ViT


def _bar_fsq(config: ConfigDict, remat: bool) -> BarFSQ:
    tokenizer = config.model.tokenizer
    sizes = lambda part: FrozenDict({name: part[name] for name in SIZES})
    return BarFSQ(
        image_size=config.data.image_size,
        patch_size=tokenizer.patch_size,
        bits=tokenizer.bits,
        encoder=sizes(tokenizer.encoder),
        decoder=sizes(tokenizer.decoder),
        position_grid=tokenizer.encoder.position_grid,
        predictor_layer=tokenizer.decoder.predictor_layer,
        predictor_width=tokenizer.decoder.predictor_width,
        centered_bits=tokenizer.centered_bits,
        remat=remat,
        dtype=jnp.dtype(config.dtype),
    )


KINDS = {"bar_fsq": _bar_fsq}


def make_tokenizer(config: ConfigDict, remat: bool = False) -> nn.Module:
    """The tokenizer that a config describes; `remat` saves activation memory in training."""
    return KINDS[config.model.tokenizer.kind](config, remat)
