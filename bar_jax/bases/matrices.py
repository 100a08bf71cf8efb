"""Fixed bases: earlier methods, and the offline optimum, as matrices A in y = A x.

The basis paper's section 3.2 names the methods; what their rows are is said at each function.
Matrices are made on the CPU in float64, and act on tokens in raster order.

| kind | shape | rank | rows |
|---|---|---|---|
| `scales` | [1 + 4 + 16 + ... + N, N] | N | not orthogonal; row norms 1 / sqrt(pooled tokens) |
| `frequency`, `haar` | [N, N] | N | orthonormal |
| `low_pass` | [N, N] | N | unit norm, not orthogonal |
| `compact` | [M, N] | M | orthonormal |
| `pca`, `random_orthogonal` | [N, N] | N | orthonormal |
"""

import numpy as np

from bar_jax.bases.kind import BasisKind, Shape
from bar_jax.runtime.errors import InputError


def compact_rows(rows: int, tokens: int) -> int:
    """M, rows of `compact`: as many as given; 0: a quarter of the tokens."""
    rows = rows or max(1, tokens // 4)
    if not 1 <= rows <= tokens:
        raise InputError("model.basis.rows", f"{rows}", f"1 to {tokens}, the number of tokens")
    return rows


def scales(grid: tuple[int, int]) -> np.ndarray:
    """Average pooling to 1 x 1, 2 x 2, 4 x 4, ..., all tokens (VAR, Tian et al. 2024).

    [sum of s^2, N], each scale in raster order. Overcomplete: the last scale alone is the identity.
    """
    side = _power_of_two("scales", grid)
    return np.concatenate([_pooling(2**i, side) for i in range(side.bit_length())])


def frequency(grid: tuple[int, int]) -> np.ndarray:
    """Orthonormal two-dimensional DCT-II, from low to high radial frequency (FAR, Yu et al. 2025).

    [N, N]. The frequency of row (u, v) is (u / height, v / width), in half cycles per token; equal
    radii stand by u, then v.
    """
    height, width = grid
    u, v = (index.reshape(-1) for index in np.indices(grid))
    radius = (u * width) ** 2 + (v * height) ** 2  # whole numbers: ties are exact
    return np.kron(_dct(height), _dct(width))[np.lexsort((v, u, radius))]


def low_pass(grid: tuple[int, int]) -> np.ndarray:
    """Low-pass filters whose cut-off grows (FAR): row k lets the first k frequencies pass alike.

    [N, N]: sums of the first k rows of `frequency`, divided by sqrt(k) so that each has norm 1 and
    noise its variance. The rows are a basis, not an orthogonal one: neighbours are nearly parallel,
    and the condition number is about 1.6 N.
    """
    count = np.arange(1, grid[0] * grid[1] + 1)
    return np.cumsum(frequency(grid), axis=0) / np.sqrt(count)[:, None]


def haar(grid: tuple[int, int]) -> np.ndarray:
    """The two-dimensional Haar tree, coarse to fine (FractalGen, Li et al. 2025).

    [N, N] orthonormal: the mean; then for each level from one block (the image) to blocks of 2 x 2,
    and for each block in raster order, three differences of its quarters: left minus right, upper
    minus lower, falling diagonal minus rising one.
    """
    side = _power_of_two("haar", grid)
    levels = [np.full((1, side * side), 1 / side)]
    signs = np.array([[1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
    blocks = 1
    while blocks < side:
        # Means of quarters, by block and by quarter in it: [blocks^2, 4, N].
        quarters = _pooling(2 * blocks, side).reshape(blocks, 2, blocks, 2, -1)
        quarters = quarters.transpose(0, 2, 1, 3, 4).reshape(blocks**2, 4, -1)
        # A mean of n tokens has norm 1 / sqrt(n); four of them with signs, 2 / sqrt(n).
        rows = np.einsum("dq,bqn->bdn", signs, quarters) * (side / (2 * blocks) / 2)
        levels.append(rows.reshape(3 * blocks**2, -1))
        blocks *= 2
    return np.concatenate(levels)


def principal_components(second_moment: np.ndarray) -> np.ndarray:
    """Eigenvectors of a second-moment matrix, [N, N], as rows from the largest eigenvalue down.

    The optimum of the residual objective (see `objectives.residual`), so the offline basis of the
    basis paper's Table 10. The largest entry of a row in size is positive, the first of them if
    there are equals.
    """
    moments = np.asarray(second_moment, np.float64)
    rows = np.linalg.eigh((moments + moments.T) / 2)[1].T[::-1]
    size = np.abs(rows)
    # Equal up to rounding counts as equal: else the sign would hang on it.
    first = np.argmax(size > size.max(1, keepdims=True) * (1 - 1e-6), axis=1)
    return rows * np.sign(rows[np.arange(len(rows)), first])[:, None]


def random_orthogonal(tokens: int, seed: int) -> np.ndarray:
    """A random rotation or reflection, [N, N], uniform among all (Q of a Gaussian's QR)."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((tokens, tokens)))
    return q * np.sign(np.diag(r))  # QR's choice of signs is not uniform


def _power_of_two(kind: str, grid: tuple[int, int]) -> int:
    """The side of a square grid whose side is a power of two."""
    height, width = grid
    if height != width or height < 1 or height & (height - 1):
        raise InputError(
            "model.basis.kind",
            f"{kind!r} on {height} x {width} tokens",
            "a square grid whose side is a power of two",
        )
    return height


def _pooling(scale: int, side: int) -> np.ndarray:
    """Means over the squares that cut side x side tokens into scale x scale, [scale^2, side^2]."""
    line = np.kron(np.eye(scale), np.full((1, side // scale), scale / side))
    return np.kron(line, line)


def _dct(size: int) -> np.ndarray:
    """Orthonormal DCT-II, [size, size]: row u is cos(pi u (i + 1/2) / size), scaled."""
    u, i = np.indices((size, size))
    scale = np.sqrt(np.where(u == 0, 1, 2) / size)
    return scale * np.cos(np.pi * u * (2 * i + 1) / (2 * size))


def _components(kind: str, rows: int, shape: Shape) -> np.ndarray:
    """The leading principal components; without tokens, so many random orthonormal rows."""
    if shape.second_moment is None:
        return random_orthogonal(shape.tokens, shape.seed)[:rows]
    found = np.shape(shape.second_moment)
    if found != (shape.tokens, shape.tokens):
        expected = f"moments ({shape.tokens}, {shape.tokens}) of tokens"
        raise InputError("model.basis.kind", f"{kind!r} with moments {found}", expected)
    return principal_components(shape.second_moment)[:rows]


_compact_length = lambda shape: compact_rows(shape.rows, shape.tokens)
KINDS = {
    "scales": BasisKind(
        matrix=lambda shape: scales(shape.grid), length=lambda shape: len(scales(shape.grid))
    ),
    "frequency": BasisKind(matrix=lambda shape: frequency(shape.grid)),
    "low_pass": BasisKind(matrix=lambda shape: low_pass(shape.grid)),
    "haar": BasisKind(
        matrix=lambda shape: haar(shape.grid), length=lambda shape: len(haar(shape.grid))
    ),
    "compact": BasisKind(
        matrix=lambda shape: _components("compact", _compact_length(shape), shape),
        length=_compact_length,
        from_tokens=True,
        fields=("rows",),
    ),
    "pca": BasisKind(
        matrix=lambda shape: _components("pca", shape.tokens, shape), from_tokens=True
    ),
    "random_orthogonal": BasisKind(
        matrix=lambda shape: random_orthogonal(shape.tokens, shape.seed)
    ),
}
