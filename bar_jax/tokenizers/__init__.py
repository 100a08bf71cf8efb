"""image <-> tokens. A new tokenizer is one file here and one line in KINDS."""

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from ml_collections import ConfigDict

from bar_jax.bases import make_basis
from bar_jax.config import basis_inside, token_channels, token_grid
from bar_jax.tokenizers.bar_fsq import BarFSQ
from bar_jax.tokenizers.basis_fsq import BasisFSQ
from bar_jax.tokenizers.kl_vae import KLVAE, attention_levels
from bar_jax.tokenizers.pixels import Pixels

SIZES = ("width", "depth", "heads", "mlp_width")  # of a ViT


def _bar_fsq(config: ConfigDict, remat: bool, kind: type = BarFSQ, **options) -> BarFSQ:
    tokenizer = config.model.tokenizer
    sizes = lambda part: FrozenDict({name: part[name] for name in SIZES})
    return kind(
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
        **options,
    )


def _basis_fsq(config: ConfigDict, remat: bool) -> BasisFSQ:
    options = dict(basis=make_basis(config), gains=config.model.basis.gains)
    return _bar_fsq(config, remat, BasisFSQ, **options)


def _kl_vae(config: ConfigDict, remat: bool) -> KLVAE:
    del remat  # it is not trained here
    sizes = config.model.tokenizer.kl
    return KLVAE(
        image_size=config.data.image_size,
        width=sizes.width,
        multipliers=tuple(sizes.multipliers),
        blocks=sizes.blocks,
        channels=sizes.channels,
        attention_levels=attention_levels(sizes.multipliers, sizes.attention),
        scale=sizes.scale,
        dtype=jnp.dtype(config.dtype),
    )


def _pixels(config: ConfigDict, remat: bool) -> Pixels:
    del remat  # there is nothing to train
    return Pixels(config.data.image_size, config.model.tokenizer.patch_size)


# What only some kinds read of `config.model.tokenizer`; a section ends with a dot.
_VIT = ("bits", "centered_bits", "encoder.", "decoder.")
FIELDS = {"bar_fsq": _VIT, "basis_fsq": _VIT, "kl_vae": ("kl.",), "pixels": ()}
KINDS = {"bar_fsq": _bar_fsq, "basis_fsq": _basis_fsq, "kl_vae": _kl_vae, "pixels": _pixels}


def make_tokenizer(config: ConfigDict, remat: bool = False) -> nn.Module:
    """The tokenizer that a config describes; `remat` saves activation memory in training."""
    return KINDS[config.model.tokenizer.kind](config, remat)


def cached_as(config: ConfigDict) -> tuple[str, int]:
    """How a token is cached: `bits`, `uint8` or `float32`, and how many of them."""
    kind, channels = config.model.tokenizer.kind, token_channels(config)
    real = {
        "kl_vae": ("float32", 2 * channels),  # mean and log-variance
        "pixels": ("uint8", channels),
    }
    return real.get(kind, ("bits", channels))


def sequence_grid(config: ConfigDict) -> tuple[int, int]:
    """Rows and columns of the tokens that are cached and modelled.

    Those of basis_fsq have no place in the image: they are one row, as long as A has rows.
    """
    grid = token_grid(config)
    return (1, make_basis(config).length(grid)) if basis_inside(config) else grid
