"""image <-> tokens. A new tokenizer is one file here and one line in KINDS."""

import flax.linen as nn
from ml_collections import ConfigDict

from bar_jax.bases import make_basis
from bar_jax.config import token_grid
from bar_jax.tokenizers import bar_fsq, basis_fsq, kl_vae, pixels
from bar_jax.tokenizers.kind import TokenizerKind

KINDS: dict[str, TokenizerKind] = {
    "bar_fsq": bar_fsq.KIND,
    "basis_fsq": basis_fsq.KIND,
    "kl_vae": kl_vae.KIND,
    "pixels": pixels.KIND,
}


def kind_of(config: ConfigDict) -> TokenizerKind:
    """What the configured kind says of itself."""
    return KINDS[config.model.tokenizer.kind]


def make_tokenizer(config: ConfigDict, remat: bool = False) -> nn.Module:
    """The tokenizer that a config describes; `remat` saves activation memory in training."""
    return kind_of(config).make(config, remat)


def real_valued(config: ConfigDict) -> bool:
    """Whether tokens are vectors of real numbers, not of bits."""
    return not kind_of(config).makes_bits


def is_trained(config: ConfigDict) -> bool:
    """Whether stage 1 trains the tokenizer."""
    return not kind_of(config).untrained


def basis_inside(config: ConfigDict) -> bool:
    """Whether the basis is a part of the tokenizer, before its quantiser."""
    return kind_of(config).has_basis


def token_width(config: ConfigDict) -> int:
    """K: bits or numbers of a token of the tokenizer."""
    return kind_of(config).width(config)


def cached_as(config: ConfigDict) -> tuple[str, int]:
    """How a token is cached: `bits`, `uint8` or `float32`, and how many of them."""
    return kind_of(config).cached_as(config)


def sequence_grid(config: ConfigDict) -> tuple[int, int]:
    """Rows and columns of the tokens that are cached and modelled.

    Those of a tokenizer with a basis have no place in the image: they are one row, as long as A has
    rows.
    """
    grid = token_grid(config)
    return (1, make_basis(config).length(grid)) if basis_inside(config) else grid
