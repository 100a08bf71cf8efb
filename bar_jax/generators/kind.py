"""What a kind of generator says of itself, beside its code."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
from ml_collections import ConfigDict

from bar_jax.bases import make_basis
from bar_jax.config import token_grid
from bar_jax.runtime.errors import InputError
from bar_jax.tokenizers import token_width


class GeneratorKind(NamedTuple):
    """A kind of generator.

    Attributes:
      make: (config, remat) -> the generator, as the jobs know it (see `bar_jax.generators`).
      writes_bits, writes_numbers: which tokens it can model.
      heads: the kinds of head it takes; None: any of the tokens' sort that can be made.
      takes_order: whether it can write an image's tokens in any order (RAR).
      fields: what only some kinds read of `config.model.generator`.
      sampling_fields: what it reads of `config.sample`.
      queries: config -> tokens that look at the KV cache together; 0: there is no cache.
      check: (config, rows of a square of tokens, rows of A) -> None; raises InputError for what
        cannot be made.
    """

    make: Callable[[ConfigDict, bool], nn.Module]
    writes_bits: bool = False
    writes_numbers: bool = False
    heads: tuple[str, ...] | None = None
    takes_order: bool = False
    fields: tuple[str, ...] = ()
    sampling_fields: tuple[str, ...] = ()
    queries: Callable[[ConfigDict], int] = lambda config: 1
    check: Callable[[ConfigDict, int, int], None] = lambda config, rows, length: None


def written_grid(config: ConfigDict) -> tuple[int, int]:
    """Rows and columns of tokens as the generator writes them, after token shuffling."""
    return tuple(side // config.model.generator.patch_size for side in token_grid(config))


def written_width(config: ConfigDict) -> int:
    """Bits or numbers of a token as the generator writes it, after token shuffling."""
    return token_width(config) * config.model.generator.patch_size**2


def rows_of_basis(config: ConfigDict) -> int:
    """N', the length of the sequence y = A x in front of a generator."""
    return make_basis(config).length(written_grid(config))


def check_heads(config: ConfigDict, even: bool = False) -> None:
    """Checks the attention's heads: a multiple of 4 channels, for rotary embedding in a grid.

    Args:
      even: whether their number has to be even.

    Raises:
      InputError: if they are others.
    """
    generator = config.model.generator
    channels = generator.width // generator.heads
    if channels % 4 or (even and generator.heads % 2):
        raise InputError(
            "model.generator.heads",
            f"{generator.heads} heads of {channels} channels",
            "an even number of heads, each with a multiple of 4 channels"
            if even
            else "heads with a multiple of 4 channels each",
        )
