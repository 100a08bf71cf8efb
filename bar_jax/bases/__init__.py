"""Tokens x <-> the sequence y = A x that is predicted (basis paper, section 3).

`permutation` holds orders, `matrices` the fixed bases, `transform` goes there and back,
`projection` keeps a learned A near the orthogonal matrices, `objectives` are what it is learned
with, and `energy` measures how early a basis gathers what is in the images. A acts on tokens in
raster order. A new fixed basis is one file here and one line in KINDS.
"""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from bar_jax.bases import matrices, permutation
from bar_jax.bases.kind import BasisKind, Shape

IDENTITY = "identity"  # the generator's own order
LEARNED = "learned"  # a matrix that starts as a fixed kind
RANDOM = "random"  # RAR: an order for each example
MATRIX = "basis"  # name of A among the parameters
KINDS: dict[str, BasisKind] = {**permutation.KINDS, **matrices.KINDS}


class Basis(NamedTuple):
    """Which basis; hashable. Fields are those of `config.model.basis`.

    Attributes:
      kind: one of KINDS, `identity`, `random` or `learned`.
      init: what a learned A starts as.
      block, rows: of kinds that have them.
      seed: of random ones.
      inverse: the way back, see `transform.inverse`.
    """

    kind: str
    init: str = IDENTITY
    block: int = 2
    rows: int = 0
    seed: int = 0
    inverse: str = "inverse"

    @property
    def fixed(self) -> str:
        """The fixed kind that A is, or starts as."""
        return self.init if self.kind == LEARNED else self.kind

    @property
    def has_matrix(self) -> bool:
        """Whether A is a matrix; the others are orders, and tokens are moved about."""
        if self.kind in (IDENTITY, RANDOM):
            return False
        return self.kind == LEARNED or KINDS[self.kind].matrix is not None

    @property
    def needs_tokens(self) -> bool:
        """Whether A is made of the tokens of the data set."""
        return self.fixed in KINDS and KINDS[self.fixed].from_tokens

    def order(self, grid: tuple[int, int], own: np.ndarray) -> np.ndarray:
        """[N] places of the first, second, ... token; `random` is raster to begin with.

        Args:
          own: the order of the generator itself, which `identity` keeps.
        """
        if self.fixed == IDENTITY:
            return own
        kind = KINDS["raster" if self.fixed == RANDOM else self.fixed]
        return kind.order(self._shape(grid))

    def matrix(
        self, grid: tuple[int, int], own: np.ndarray, second_moment: np.ndarray | None = None
    ) -> np.ndarray:
        """A [N', N] float64, as it starts.

        Args:
          own: as for `order`.
          second_moment: of the tokens, see `kind.Shape`; bases that are made of tokens are random
            orthogonal ones without it.
        """
        kind = KINDS.get(self.fixed)
        if kind is None or kind.matrix is None:
            return np.eye(len(own))[self.order(grid, own)]
        return kind.matrix(self._shape(grid)._replace(second_moment=second_moment))

    def length(self, grid: tuple[int, int]) -> int:
        """N', rows of A.

        Raises:
          InputError: if the basis does not fit the grid.
        """
        kind, shape = KINDS.get(self.fixed), self._shape(grid)
        if kind and kind.length:
            return kind.length(shape)
        if kind and kind.order:
            return len(kind.order(shape))
        return shape.tokens

    def _shape(self, grid: tuple[int, int]) -> Shape:
        return Shape(grid, self.block, self.rows, self.seed)


def make_basis(config: ConfigDict) -> Basis:
    """The basis that a config describes."""
    basis = config.model.basis
    return Basis(basis.kind, basis.init, basis.block, basis.rows, config.seed, basis.inverse)


def is_basis(path: tuple) -> bool:
    """Whether a parameter is A, by its path."""
    return path[0].key == MATRIX


def kinds_of_orders() -> tuple[str, ...]:
    """Fixed orders of the tokens."""
    return tuple(kind for kind, basis in KINDS.items() if basis.order)


def kinds_to_start_from() -> tuple[str, ...]:
    """What a learned A may start as: the identity, and every fixed kind as a matrix."""
    return IDENTITY, *KINDS
