"""p(tokens | class). A new generator is one file here and one line in KINDS."""

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from bar_jax.config import bits_per_token, token_grid
from bar_jax.generators.causal import CausalTransformer
from bar_jax.generators.masked_bit import MaskedBitGenerator
from bar_jax.heads import make_head


def _causal(config: ConfigDict, remat: bool) -> MaskedBitGenerator:
    generator, bits, grid = config.model.generator, bits_per_token(config), token_grid(config)
    trunk = CausalTransformer(
        bits=bits,
        grid=tuple(side // generator.patch_size for side in grid),
        num_classes=config.data.num_classes,
        width=generator.width,
        depth=generator.depth,
        heads=generator.heads,
        output_width=config.model.head.width,
        class_repeats=generator.class_repeats,
        dropout=generator.dropout,
        attention_dropout=generator.attention_dropout,
        remat=remat,
        dtype=jnp.dtype(config.dtype),
    )
    return MaskedBitGenerator(
        trunk=trunk,
        head=make_head(config, bits, remat),
        token_grid=grid,
        patch_size=generator.patch_size,
        label_dropout=generator.label_dropout,
    )


KINDS = {"causal": _causal}


def make_generator(config: ConfigDict, remat: bool = False) -> nn.Module:
    """The generator that a config describes; `remat` saves activation memory in training."""
    return KINDS[config.model.generator.kind](config, remat)
