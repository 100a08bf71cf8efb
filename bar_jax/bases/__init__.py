"""Tokens x <-> the sequence y = A x that is predicted (basis paper, section 3).

`permutation` holds orders, `matrices` the fixed bases, `transform` goes there and back,
`projection` keeps a learned A near the orthogonal matrices, `objectives` are what it is learned
with, and `energy` measures how early a basis gathers what is in the images. A acts on tokens in
raster order.
"""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from bar_jax.bases.matrices import FROM_TOKENS, MATRICES, compact_rows, matrix
from bar_jax.bases.permutation import ORDERS, order

__all__ = [
    "FROM_TOKENS", "LEARNED", "MATRICES", "MATRIX", "ORDERS", "PERMUTATIONS", "RANDOM", "Basis",
    "is_basis", "make_basis",
]  # fmt: skip

LEARNED = "learned"
MATRIX = "basis"  # name of A among the parameters
RANDOM = "random"  # RAR: an order for each example
# Each is a fixed order of the tokens, or of each image its own.
PERMUTATIONS = ("identity", *ORDERS, RANDOM)


class Basis(NamedTuple):
    """Which basis; hashable. Fields are those of `config.model.basis`.

    Attributes:
      kind: one of `PERMUTATIONS` or of `matrices.MATRICES`, or `learned`.
      init: what a learned A starts as.
      block, rows: of kinds that have them.
      seed: of random ones.
      inverse: the way back, see `transform.inverse`.
    """

    kind: str
    init: str = "identity"
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
        return self.kind not in PERMUTATIONS

    @property
    def needs_tokens(self) -> bool:
        """Whether A is made of the tokens of the data set."""
        return self.fixed in FROM_TOKENS

    def order(self, grid: tuple[int, int], own: np.ndarray) -> np.ndarray:
        """[N] places of the first, second, ... token; `random` is raster to begin with.

        Args:
          own: the order of the generator itself, which `identity` keeps.
        """
        if self.fixed == "identity":
            return own
        return order("raster" if self.fixed == RANDOM else self.fixed, grid, self.block)

    def matrix(
        self, grid: tuple[int, int], own: np.ndarray, second_moment: np.ndarray | None = None
    ) -> np.ndarray:
        """A [N', N] float64, as it starts.

        Args:
          own: as for `order`.
          second_moment: of the tokens, see `matrices.matrix`; bases that are made of tokens are
            random orthogonal ones without it.
        """
        if self.fixed in PERMUTATIONS:
            return np.eye(len(own))[self.order(grid, own)]
        kind, rows = self.fixed, self.rows
        if self.needs_tokens and second_moment is None:
            count = len(own) if kind == "pca" else compact_rows(rows, len(own))
            return matrix("random_orthogonal", grid, seed=self.seed)[:count]
        return matrix(
            kind, grid, block=self.block, rows=rows, seed=self.seed, second_moment=second_moment
        )

    def length(self, grid: tuple[int, int]) -> int:
        """N', rows of A.

        Raises:
          InputError: if the basis does not fit the grid.
        """
        tokens = grid[0] * grid[1]
        if self.fixed == "compact":
            return compact_rows(self.rows, tokens)
        if self.fixed in ("scales", "haar"):  # of some grids alone
            return len(matrix(self.fixed, grid))
        if self.fixed in ORDERS:
            order(self.fixed, grid, self.block)
        return tokens


def make_basis(config: ConfigDict) -> Basis:
    """The basis that a config describes."""
    basis = config.model.basis
    return Basis(basis.kind, basis.init, basis.block, basis.rows, config.seed, basis.inverse)


def is_basis(path: tuple) -> bool:
    """Whether a parameter is A, by its path."""
    return path[0].key == MATRIX
