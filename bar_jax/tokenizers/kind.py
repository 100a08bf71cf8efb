"""What a kind of tokenizer says of itself, beside its code."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
from ml_collections import ConfigDict

Fields = dict[str, object]


def _by_kind_and_patch(fields: Fields) -> list[Fields]:
    return [{name: fields[name] for name in ("kind", "patch_size")}]


class TokenizerKind(NamedTuple):
    """A kind of tokenizer.

    Attributes:
      make: (config, remat) -> the module, with `encode`, `decode` and `grid`; of real numbers also
        `latents`, from what is cached to what is modelled.
      makes_bits: whether tokens are bits, else real numbers.
      width: config -> K, bits or numbers of a token.
      cached_as: config -> what the cache holds of a token: `bits`, `uint8` or `float32`, and how
        many of them.
      untrained: why stage 1 does not train it; "": it does.
      has_parameters: whether there is anything to restore.
      decoded: what of a token is decoded where it is a distribution; "": it is none.
      has_basis: whether y = A z is inside, before the quantizer.
      fields: what only some kinds read of `config.model.tokenizer`; a section ends with a dot.
      sampling_fields: what it reads of `config.sample`.
      group: path of a parameter (its keys) -> the group that it is trained with: embeddings,
        encoder, quantizer, basis or decoder.
      decoder: parameters that decode alone, by the first key of their paths.
      named_by: its fields as JSON has them -> those that name its tokens beside the parameters'
        paths and numbers; then those that named them in older caches, if others.
      count_parameters: (config, shapes of the parameters) -> how many there are, by use.
      check: config -> None; raises InputError for what cannot be made.
    """

    make: Callable[[ConfigDict, bool], nn.Module]
    makes_bits: bool
    width: Callable[[ConfigDict], int]
    cached_as: Callable[[ConfigDict], tuple[str, int]]
    untrained: str = ""
    has_parameters: bool = True
    decoded: str = ""
    has_basis: bool = False
    fields: tuple[str, ...] = ()
    sampling_fields: tuple[str, ...] = ()
    group: Callable[[Sequence[str]], str] = lambda path: "encoder"
    decoder: tuple[str, ...] = ()
    named_by: Callable[[Fields], list[Fields]] = _by_kind_and_patch
    count_parameters: Callable[[ConfigDict, Mapping], dict[str, int]] | None = None
    check: Callable[[ConfigDict], None] = lambda config: None
