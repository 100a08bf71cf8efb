"""What a learned basis is trained by (basis paper, sections 3.4 and 3.5)."""

import chex
import jax
import jax.numpy as jnp


def residual(x: jax.Array, clean: jax.Array, A: jax.Array) -> jax.Array:
    """How well prefixes of a predicted sequence recover the tokens (eq. 10), without its weight.

    The sum over prefixes k of ||x - sum_{l <= k} a_l yhat_l||^2, a_l being the rows of A, divided
    by rows, tokens and channels. With the Gram matrix G = A A^T and y = A x the sum is

        N' ||x||^2 - 2 sum_l (N' - l + 1) yhat_l . y_l
                   + sum_{l,m} (N' - max(l, m) + 1) G_lm yhat_l . yhat_m

    since row l is in N' - l + 1 prefixes, and rows l and m are together in N' - max(l, m) + 1. That
    takes O(N^2 d) operations and no memory for the prefixes. Gradients reach A through y and G.

    With yhat = y and A orthogonal, prefix k leaves the energy outside the first k rows, so that
    the sum is least where every prefix spans the leading principal components: PCA, in order.

    Args:
      x: [B, N, d] tokens.
      clean: [R, B, N', d] yhat, the sequence recovered from R predictions.
      A: [N', N].

    Returns:
      [R, B] float32. Operands are float32 too: the terms cancel, and bfloat16 (even tf32) operands
      leave nothing of the gradient of a good prediction.
    """
    rows, tokens = A.shape
    chex.assert_shape(x, (None, tokens, None))
    chex.assert_shape(clean, (None, x.shape[0], rows, x.shape[2]))
    x, clean, A = (jnp.asarray(array, jnp.float32) for array in (x, clean, A))
    prefixes = rows - jnp.arange(rows, dtype=jnp.float32)  # that hold row l: N' - l + 1
    together = jnp.minimum(prefixes[:, None], prefixes[None, :])
    weighted_y = jnp.einsum("ln,bnd->bld", prefixes[:, None] * A, x, precision="highest")
    mixed = jnp.einsum("lm,rbmd->rbld", together * _gram(A), clean, precision="highest")
    # One pass over yhat for both of its terms.
    per_row = clean * (mixed - 2 * weighted_y[None])
    total = rows * jnp.sum(x**2, axis=(1, 2))[None] + jnp.sum(per_row, axis=(2, 3))
    return total / (rows * tokens * x.shape[2])


def regularizer(A: jax.Array) -> jax.Array:
    """Mean of (A A^T - I)^2, float32 scalar (section 3.5, scaled as in Algorithm 1); A: [N', N]."""
    A = jnp.asarray(A, jnp.float32)
    return jnp.mean((_gram(A) - jnp.eye(A.shape[0])) ** 2)


def _gram(A: jax.Array) -> jax.Array:
    return jnp.matmul(A, A.T, precision="highest")
