"""What a kind of head says of itself, beside its code."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
from ml_collections import ConfigDict


class HeadKind(NamedTuple):
    """A kind of head.

    Attributes:
      make: (config, numbers of a token, remat) -> the module; None: it is a part of its generator,
        which names it.
      writes_bits: whether tokens are bits, else real numbers.
      fields: what it reads of `config.model.head`.
      sampling_fields: what it reads of `config.sample`.
      evaluations: config -> how often the head is evaluated for a token while it is sampled.
      check: (config, numbers of a token) -> None; raises InputError for what cannot be made.
      check_sampling: the same, for what cannot be sampled.
    """

    make: Callable[[ConfigDict, int, bool], nn.Module] | None
    writes_bits: bool
    fields: tuple[str, ...] = ()
    sampling_fields: tuple[str, ...] = ()
    evaluations: Callable[[ConfigDict], int] = lambda config: 1
    check: Callable[[ConfigDict, int], None] = lambda config, width: None
    check_sampling: Callable[[ConfigDict, int], None] = lambda config, width: None
