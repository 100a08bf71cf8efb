"""The pure functions of bar_jax/bases/, with and without jit, against NumPy in float64."""

import functools

import numpy as np

from bar_jax.bases import energy, objectives, permutation, projection, transform
from tests.variants import against_numpy

B, N, D = 3, 6, 2
RNG = np.random.default_rng(0)
A, WIDE = RNG.normal(size=(N, N)) + 2 * np.eye(N), RNG.normal(size=(4, N))
X = RNG.normal(size=(B, N, D))
ORDERS = np.stack([RNG.permutation(N) for _ in range(B)])
CHOICE, PLACES = RNG.uniform(size=B), RNG.uniform(size=(B, N))


def clamped(A, delta):
    """Singular values within [1 - delta, 1 + delta]."""
    U, values, V = np.linalg.svd(A, full_matrices=False)
    return U @ np.diag(np.clip(values, 1 - delta, 1 + delta)) @ V


def left_by_prefixes(x, y, A):
    """The mean, over prefixes of y, of what they leave of x."""
    errors = [(x - np.einsum("kn,bkd->bnd", A[:k], y[:, :k])) ** 2 for k in range(1, len(A) + 1)]
    return np.mean(errors, axis=(0, 2, 3))


applied = lambda A, x: np.einsum("kn,bnd->bkd", A, x)
by_transpose = functools.partial(transform.inverse, method="transpose")
CASES = [
    ("forward", transform.forward, (WIDE, X), applied),
    ("inverse", transform.inverse, (A, X), lambda A, y: applied(np.linalg.inv(A), y)),
    ("pinv", transform.inverse, (WIDE, X[:, :4]), lambda A, y: applied(np.linalg.pinv(A), y)),
    ("transpose", by_transpose, (WIDE, X[:, :4]), lambda A, y: applied(A.T, y)),
    ("inverse_matrix", transform.inverse_matrix, (A,), np.linalg.inv),
    *(
        (f"project_{delta}", functools.partial(projection.project, delta=delta), (A,),
         functools.partial(clamped, delta=delta))
        for delta in (0, 0.01, 0.5)
    ),
    ("residual", lambda x, y, A: objectives.residual(x, y[None], A)[0], (X, X[:, :4] + 1, WIDE),
     left_by_prefixes),
    ("regularizer", objectives.regularizer, (A,), lambda A: np.mean((A @ A.T - np.eye(N)) ** 2)),
    ("second_moment", energy.second_moment, (X,),
     lambda x: (sum(x[b] @ x[b].T for b in range(B)), B * D)),
    ("random_share", functools.partial(permutation.random_share, start=2, end=6),
     (np.arange(8),), lambda step: np.interp(step, [2, 6], [1, 0])),
    ("draw_orders", functools.partial(permutation.draw_orders, 0.5), (CHOICE, PLACES),
     lambda choice, places: np.stack([
         np.argsort(row) if draw < 0.5 else np.arange(N)
         for draw, row in zip(choice, places, strict=True)
     ])),
    ("gather", permutation.gather, (X, ORDERS),
     lambda x, order: np.stack([row[o] for row, o in zip(x, order, strict=True)])),
    ("scatter", permutation.scatter, (X, ORDERS),
     lambda x, order: np.stack([row[np.argsort(o)] for row, o in zip(x, order, strict=True)])),
]  # fmt: skip


TestVariants = against_numpy(CASES)
