"""Tokens x -> sequence y = A x, and back (basis paper, eq. 4).

A acts on the token axis alone; all channels share it. Always float32, with full precision of the
products: accelerators' default rounds operands, and y feeds both the input and the target.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from bar_jax.runtime.errors import InputError

INVERSES = ("inverse", "transpose")


def forward(A: jax.Array, x: jax.Array) -> jax.Array:
    """Tokens x [B, N, d] -> y = A x [B, N', d] float32; A: [N', N]."""
    chex.assert_shape(x, (None, A.shape[1], None))
    return _apply(A, x)


def inverse(A: jax.Array, y: jax.Array, method: str = "inverse") -> jax.Array:
    """The way back: y [B, N', d] -> tokens x [B, N, d] float32.

    Args:
      A: [N', N] of full rank (see `check_invertible`). Learned ones are only nearly orthogonal.
      method: `inverse`: the exact one, by LU, of a square A, else the pseudo-inverse, which
        recovers x where there are more rows than tokens, and the best linear reconstruction, the
        orthogonal projection of x on the rows, where there are fewer. `transpose`: A^T y.
    """
    chex.assert_shape(y, (None, A.shape[0], None))
    if method not in INVERSES:
        raise InputError("model.basis.inverse", repr(method), f"one of {', '.join(INVERSES)}")
    A, y = jnp.asarray(A, jnp.float32), jnp.asarray(y, jnp.float32)
    if method == "transpose":
        return _apply(A.T, y)
    with jax.default_matmul_precision("highest"):
        if A.shape[0] != A.shape[1]:
            return _apply(jnp.linalg.pinv(A), y)
        # One factorisation: images and channels are columns.
        batch, tokens, channels = y.shape
        columns = y.transpose(1, 0, 2).reshape(tokens, batch * channels)
        x = jnp.linalg.solve(A, columns)
        return x.reshape(tokens, batch, channels).transpose(1, 0, 2)


def inverse_matrix(A: jax.Array, method: str = "inverse") -> jax.Array:
    """What `inverse` multiplies by, [N, N'], for those that need it more than once."""
    return inverse(A, jnp.eye(A.shape[0])[None], method)[0]


def check_invertible(A: np.ndarray, where: str = "model.basis") -> None:
    """Refuses a basis whose inverse would be noise: on the CPU, before anything is compiled.

    Args:
      A: [N', N].
      where: the field or file that it comes from.

    Raises:
      InputError: if entries are not finite, or the rank in float32 is less than min(N', N).
    """
    A = np.asarray(A, np.float64)
    expected = f"an A of full rank, {min(A.shape)}"
    if not np.isfinite(A).all():
        raise InputError(where, "an A with entries that are not finite", expected)
    values = np.linalg.svd(A, compute_uv=False)
    # numpy.linalg.matrix_rank's tolerance, of float32.
    tolerance = values[0] * max(A.shape) * np.finfo(np.float32).eps
    rank = int((values > tolerance).sum())
    if rank < min(A.shape):
        raise InputError(where, f"an A of {A.shape[0]} x {A.shape[1]} with rank {rank}", expected)


def _apply(A: jax.Array, x: jax.Array) -> jax.Array:
    A, x = jnp.asarray(A, jnp.float32), jnp.asarray(x, jnp.float32)
    return jnp.einsum("kn,bnd->bkd", A, x, precision="highest")
