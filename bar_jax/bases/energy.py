"""How much of the tokens the first rows of a basis hold.

The measure that learned bases are compared with PCA by, the optimum of the residual objective.
Matrices come to main memory: everything but `second_moment` is numpy in float64.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from bar_jax.bases.matrices import principal_components

# A row that differs by less than this fraction of its norm from what earlier rows span adds
# nothing: float32 tokens cannot resolve it.
DEPENDENT = 1e-6


def second_moment(x: jax.Array) -> tuple[jax.Array, int]:
    """Sum over images and channels of x x^T, [N, N] float32, and how many were summed, B d.

    Both add up over batches (add in float64 on the CPU where there are many); the sum divided by
    the number is the second-moment matrix.

    Args:
      x: [B, N, d] tokens.
    """
    chex.assert_rank(x, 3)
    x = jnp.asarray(x, jnp.float32)
    return jnp.einsum("bnd,bmd->nm", x, x, precision="highest"), x.shape[0] * x.shape[2]


def prefix_energy(A: np.ndarray, second_moment: np.ndarray) -> np.ndarray:
    """Fraction of the tokens' energy in the span of the first 1, 2, ..., N' rows.

    The energy (mean squared norm) of the orthogonal projection on that span: rows need be neither
    orthogonal nor independent, and their scale does not matter.

    Args:
      A: [N', N].
      second_moment: [N, N], or any positive multiple of it.

    Returns:
      [N'] in [0, 1], never falling.
    """
    A, moments = np.asarray(A, np.float64), np.asarray(second_moment, np.float64)
    onto = np.zeros((min(A.shape), A.shape[1]))  # orthonormal basis of the span, so far `rank` rows
    rank, energy = 0, np.zeros(len(A))
    # Householder QR would not do: where rows are dependent its columns leave their span.
    for k, row in enumerate(A):
        if rank == A.shape[1]:
            break
        rest = row
        for _ in range(2):  # the second time takes away what rounding left the first time
            rest = rest - onto[:rank].T @ (onto[:rank] @ rest)
        norm = np.linalg.norm(rest)
        if norm > DEPENDENT * np.linalg.norm(row):
            onto[rank] = rest / norm
            energy[k] = onto[rank] @ moments @ onto[rank]
            rank += 1
    return np.clip(np.cumsum(energy) / _trace(moments), 0, 1)


def pca_energy(fitted: np.ndarray, second_moment: np.ndarray, rows: int) -> np.ndarray:
    """The prefix energies of principal components, [rows].

    Args:
      fitted: [N, N] second moments of the tokens that the components are those of.
      second_moment: [N, N] of the tokens whose energy is asked for; of the same tokens, no basis
        holds more.
      rows: more than N hold no more than N.
    """
    curve = prefix_energy(principal_components(fitted)[:rows], second_moment)
    return np.pad(curve, (0, rows - len(curve)), mode="edge")


def energy_area(curve: np.ndarray) -> float:
    """Area under a curve of prefix energies: their mean, 1 where the first row holds all."""
    return float(np.mean(curve))


def _trace(moments: np.ndarray) -> float:
    trace = np.trace(moments)
    if not trace > 0:
        raise ValueError(f"The tokens' energy is {trace}; all tokens are zero, or not finite.")
    return trace
