"""What a kind of basis says of itself, beside its code."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Shape(NamedTuple):
    """What a fixed basis is made from.

    Attributes:
      grid: rows and columns of the tokens, N in all.
      block: side of a cell or block, in tokens.
      rows: rows of A, of a kind whose number can be chosen; 0: its own choice.
      seed: of a random one.
      second_moment: [N, N] mean of x x^T over images and channels (see `energy.second_moment`), of
        which any positive multiple does; None: there are no tokens yet.
    """

    grid: tuple[int, int]
    block: int = 2
    rows: int = 0
    seed: int = 0
    second_moment: np.ndarray | None = None

    @property
    def tokens(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]


class BasisKind(NamedTuple):
    """A kind of fixed basis, an order of the tokens or a matrix.

    Attributes:
      order: Shape -> [N] places (raster index) of the first, second, ... token; None: a matrix.
      matrix: Shape -> A [N', N] float64; None: an order.
      length: Shape -> N', which also refuses a grid that does not do; None: N.
      from_tokens: whether A is made of the tokens of the data set.
      fields: what it reads of `config.model.basis`.
    """

    order: Callable[[Shape], np.ndarray] | None = None
    matrix: Callable[[Shape], np.ndarray] | None = None
    length: Callable[[Shape], int] | None = None
    from_tokens: bool = False
    fields: tuple[str, ...] = ()
