"""Keeps a learned basis orthogonal, or nearly so: the last link of its optimiser's chain.

After every update A = U S V^T becomes U clamp(S, 1 - delta, 1 + delta) V^T (basis paper, section
3.5; Table 6). Most updates leave S inside already, and a few matrix products can prove it, so that
an SVD is rare under soft projection. Under hard projection (delta = 0) every update moves A, and
an iteration of matrix products takes the place of the SVD where it is sure to converge.
"""

import chex
import jax
import jax.numpy as jnp
import optax

# The Frobenius norm of A^T A - I, in float32, is wrong by about 1e-5 at 1024 rows.
MARGIN = 1e-4
# Hard projection: ||A^T A - I|| from which Newton-Schulz is sure to converge fast, and the one from
# which a single step ends below float32's precision.
NEAR_ORTHOGONAL = 0.5
LAST_STEP = 3e-4


def project(A: jax.Array, delta: float) -> jax.Array:
    """A [N', N] with its singular values clamped to [1 - delta, 1 + delta], float32."""
    A = jnp.asarray(A, jnp.float32)
    return A + correction(A, delta)


def correction(A: jax.Array, delta: float) -> jax.Array:
    """What projection adds to A [N', N]: U (clamp(S) - S) V^T, float32.

    Exactly zero where one of two certificates proves that all singular values s are inside. With
    E = A^T A - I (A A^T - I if A is wide), whose eigenvalues are s^2 - 1:

    1. ||E||_F < 1 - (1 - delta)^2 = t. Since |s^2 - 1| <= ||E||_2 <= ||E||_F, s^2 > (1 - delta)^2,
       and s^2 < 1 + t = 1 + 2 delta - delta^2 <= (1 + delta)^2. One product; it gives up early
       where many values are off 1: for Q + eps * (Gaussian) of 256 rows, at a tenth of the eps.
    2. ||H^8||_F < 1 with H = (E - delta^2 I) / (2 delta), whose eigenvalues h = (s^2 - 1 - delta^2)
       / (2 delta) are -1 and 1 at s = 1 - delta and 1 + delta, and increase with s: so s is inside
       if and only if |h| <= 1, and |h|^8 <= ||H^8||_2 <= ||H^8||_F. Three products more, tried
       where the first fails; they give up at nine tenths of that eps.

    Both are compared with a little less, for float32. At delta = 0 neither ever holds.

    Args:
      A: [N', N]; under jit it may be split over devices, which then gather it for the SVD.
      delta: 0 (the nearest matrix with orthonormal rows or columns) to less than 1.
    """
    chex.assert_rank(A, 2)
    if not 0 <= delta < 1:
        raise ValueError(f"delta is {delta}, and must be at least 0 and less than 1.")
    A = jnp.asarray(A, jnp.float32)
    error = _gram_error(A)
    if delta == 0:
        near = jnp.linalg.norm(error) < NEAR_ORTHOGONAL  # NaN is not
        return jax.lax.cond(near, _polar_newton, lambda A, _: _clamp(A, 1.0, 1.0), A, error)

    def closer_look(A, error):
        H = (error - delta**2 * jnp.eye(len(error))) / (2 * delta)
        bound = max(0.0, 1 - max(1e-3, MARGIN / (2 * delta))) ** 8
        clamp = lambda A: _clamp(A, 1 - delta, 1 + delta)
        return jax.lax.cond(_eighth_power_norm(H) < bound, jnp.zeros_like, clamp, A)

    threshold = 1 - (1 - delta) ** 2
    inside = jnp.linalg.norm(error) < threshold - max(1e-3 * threshold, MARGIN)
    return jax.lax.cond(inside, lambda A, _: jnp.zeros_like(A), closer_look, A, error)


def projected(kind: str, delta: float = 0.5) -> optax.GradientTransformation:
    """Turns updates of bases into those that end on their projections.

    To stand last in the chain of the parameters that are bases (all of them matrices [N', N], in
    boxes with axis names or plain), behind `optax.partition` or `optax.masked` where others are
    beside them. An update that needs no projection passes bit for bit.

    Args:
      kind: `none` | `hard` (delta = 0) | `soft`.
      delta: `soft`: singular values stay in [1 - delta, 1 + delta].
    """
    if kind not in ("none", "hard", "soft"):
        raise ValueError(f"The projection is {kind!r}, and must be none, hard or soft.")
    if kind == "none":
        return optax.identity()
    delta = 0.0 if kind == "hard" else delta

    def one(update, A):
        # Not projection - A: that would round even where nothing is to be done.
        moved = jnp.asarray(A, jnp.float32) + jnp.asarray(update, jnp.float32)
        return update + correction(moved, delta).astype(update.dtype)

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("A projection needs the params that updates are added to.")
        return jax.tree.map(one, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _gram_error(A: jax.Array) -> jax.Array:
    """A A^T - I or A^T A - I, whichever is smaller."""
    A = A.T if A.shape[0] > A.shape[1] else A
    return _dot(A, A.T) - jnp.eye(A.shape[0])


def _eighth_power_norm(E: jax.Array) -> jax.Array:
    """||E^8||_F of a symmetric E; infinite or NaN, and so never small, where it overflows."""
    # A loop: XLA's CPU would fuse three products and the norm into one program, 20 times slower.
    return jnp.linalg.norm(jax.lax.fori_loop(0, 3, lambda _, E: _dot(E, E), E))


def _clamp(A: jax.Array, low: float, high: float) -> jax.Array:
    """U (clamp(S) - S) V^T. Directions that are inside stay as they are."""
    u, s, vt = jnp.linalg.svd(A, full_matrices=False)
    return _dot(u * (jnp.clip(s, low, high) - s)[None, :], vt)


def _polar_newton(A: jax.Array, error: jax.Array) -> jax.Array:
    """U V^T - A by Newton-Schulz steps X (3 I - X^T X) / 2, which keep U and V.

    A step takes e = s^2 - 1 to -e^2 (3 - e) / 4: 0.5 to at most 0.22, 0.039, 1.2e-3, 1.1e-6, 1e-12.
    It ends at float32's own precision, and closer to U V^T than an SVD in float32 does.

    Args:
      A, error: a matrix and its `_gram_error`, with Frobenius norm below `NEAR_ORTHOGONAL`.
    """
    wide = A.shape[0] <= A.shape[1]

    def step(X, error):
        return X - (_dot(error, X) if wide else _dot(X, error)) / 2

    def body(carry):
        X = step(*carry)
        return X, _gram_error(X)

    carry = jax.lax.while_loop(lambda c: jnp.linalg.norm(c[1]) > LAST_STEP, body, (A, error))
    return step(*carry) - A


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")
