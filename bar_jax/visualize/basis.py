"""Pictures of a basis: its rows, what prefixes of a sequence decode to, how orthogonal it stays.

The first two (the basis paper's Figures 3 and 8, 4 and 9) are grids made by numpy, for training
runs too; the others are drawn by matplotlib, the extra `figures`.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from PIL import Image, ImageDraw

from bar_jax.bases.energy import energy_area
from bar_jax.bases.transform import forward
from bar_jax.visualize.canvas import new_figure, png
from bar_jax.visualize.grid import BACKGROUND, CELL, image_grid

COLUMNS = 10
LABEL = 14  # pixels above a cell, for its index
CURVE_INCHES = (7.5, 4.0)
TRAINING_INCHES = (9.0, 3.6)
PREFIX_INCHES = (10.0, 3.2)
PREFIX_CURVES = {
    "prefix_psnr": "PSNR of real images (dB)",
    "prefix_class_accuracy": "class accuracy of real images",
    "prefix_sample_class_accuracy": "class accuracy of generated images",
}

# Distinct with any colour vision (Okabe and Ito 2008).
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_BLACK = "#222222"


def rows_picture(
    A: np.ndarray,
    grid: tuple[int, int],
    rows: Sequence[int] = range(20),
    columns: int = COLUMNS,
    labels: bool = False,
) -> np.ndarray:
    """Rows of a basis as images of the token grid, darker = higher (Figures 3 and 8).

    Every row is scaled by itself, over an interval that holds zero: its highest positive entry is
    black, its lowest negative one white, and a row without negative entries has zero in white.

    Args:
      A: [N', N], acting on tokens in raster order.
      grid: rows and columns of the tokens.
      rows: which rows, from 0; those beyond N' are left out.
      labels: writes k, from 1, above each.

    Returns:
      uint8 [H, W, 3].
    """
    rows = [k for k in rows if k < len(A)]
    A = np.asarray(A, np.float64)[rows]
    high = np.maximum(A.max(1, keepdims=True), 0)
    span = high - np.minimum(A.min(1, keepdims=True), 0)
    span = np.where(span > 0, span, 1)
    images = np.round(255 * (high - A) / span).astype(np.uint8)
    images = np.repeat(images.reshape(-1, *grid, 1), 3, axis=3)
    if labels:
        factor = max(1, math.ceil(CELL / grid[0]))
        images = images.repeat(factor, axis=1).repeat(factor, axis=2)
        images = np.stack([_labelled(i, str(k + 1)) for i, k in zip(images, rows, strict=True)])
    return image_grid(images, columns)


def prefix_counts(rows: int, every: int = 25) -> list[int]:
    """How many rows the images of Figures 4 and 9 are decoded from: 1, 25, 50, ..., all."""
    return sorted({1, *range(every, rows, every), rows})


def even_counts(tokens: int, points: int) -> list[int]:
    """1 and about `points` numbers of tokens, evenly spread up to all of them."""
    return sorted({1, *(max(1, tokens * (i + 1) // points) for i in range(points))})


def progressive_decoding(
    y: jax.Array,
    inverse: jax.Array,
    decode: Callable[[jax.Array], jax.Array],
    counts: Sequence[int],
) -> np.ndarray:
    """Images from the first k tokens of a sequence, the others being zero (Figures 4 and 9).

    Args:
      y: [B, N', d] sequences, generated or real.
      inverse: [N, N'] from sequences to tokens (see `transform.inverse_matrix`).
      decode: tokens [B, N, d] -> images [B, H, W, 3]; called once for each k.
      counts: the ks.

    Returns:
      [K, B, H, W, 3], of the dtype that `decode` gives.
    """
    here = np.arange(y.shape[1])[None, :, None]
    return np.stack([np.asarray(decode(forward(inverse, y * (here < k)))) for k in counts])


def progressive_picture(images: np.ndarray) -> np.ndarray:
    """uint8 [K, B, H, W, 3] -> [H', W', 3]: an image a row, from few rows of the basis to all."""
    return image_grid(images.swapaxes(0, 1).reshape(-1, *images.shape[2:]), len(images))


def draw_orthogonality(
    history: Sequence[tuple[int, np.ndarray, float]], delta: float | None = None
) -> bytes:
    """Singular values of A, and the norm of A A^T - I, over training.

    Args:
      history: (step, singular values, Frobenius norm) of every logged step.
      delta: draws the interval 1 +- delta that a projection holds them in.

    Returns:
      A PNG.
    """
    steps = [step for step, _, _ in history]
    figure = new_figure(TRAINING_INCHES)
    left, right = figure.subplots(1, 2)
    color = _COLORS[0]
    if history:
        values = np.stack([np.sort(np.asarray(values)) for _, values, _ in history])
        for cut in (0, 10, 25):  # percent at either end: from all of them to the middle half
            low, high = np.percentile(values, (cut, 100 - cut), axis=1)
            left.fill_between(steps, low, high, color=color, alpha=0.25, linewidth=0)
        left.plot(steps, np.median(values, axis=1), color=color, linewidth=1.2)
    for bound in () if delta is None else (1 - delta, 1 + delta):
        left.axhline(bound, color=_BLACK, linestyle=":", linewidth=1.2)
    left.set_title("all, 80 %, half and median", fontsize=10)
    left.set_ylabel("singular values of A")
    # Exactly orthogonal, as at the start, has no place on a logarithmic axis.
    norms = np.array([norm if norm > 0 else np.nan for _, _, norm in history])
    right.plot(steps, norms, color=color, linewidth=1.2)
    if np.isfinite(norms).any():
        right.set_yscale("log")
    right.set_ylabel("norm of A A^T - I")
    for axes in (left, right):
        axes.set_xlabel("step")
        _plain(axes)
    return png(figure)


def draw_prefix_energy(curves: Mapping[str, np.ndarray], best: np.ndarray) -> bytes:
    """Fraction of the tokens' energy that the first k rows hold, of bases beside PCA.

    Args:
      curves: name -> [N'] (see `energy.prefix_energy`).
      best: PCA's, [N] (see `energy.pca_energy`).

    Returns:
      A PNG.
    """
    figure = new_figure(CURVE_INCHES)
    axes = figure.subplots()
    for i, (name, curve) in enumerate(curves.items()):
        style = dict(color=_COLORS[i % len(_COLORS)], linestyle=("-", "--")[i // len(_COLORS) % 2])
        _energy_curve(axes, name, curve, linewidth=1.4, **style)
    _energy_curve(axes, "PCA", best, color=_BLACK, linestyle=":", linewidth=1.4)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("rows k")
    axes.set_ylabel("fraction of the energy in the first k rows")
    figure.legend(loc="outside right upper", frameon=False, title="area under the curve")
    _plain(axes)
    return png(figure)


def draw_prefixes(counts: Sequence[int], curves: Mapping[str, Sequence[float]]) -> bytes:
    """What the first tokens of images are worth: PSNR and class accuracy, as far as they are known.

    Args:
      counts: numbers of tokens.
      curves: `prefix_psnr` (dB), `prefix_class_accuracy` and `prefix_sample_class_accuracy`: of
        real images, and of generated ones; a number for each count.

    Returns:
      A PNG.
    """
    return draw_prefixes_of_runs({"": (counts, curves)})


def draw_prefixes_of_runs(
    runs: Mapping[str, tuple[Sequence[int], Mapping[str, Sequence[float]]]],
) -> bytes:
    """As `draw_prefixes`, of several runs: name -> (counts, curves)."""
    figure = new_figure(PREFIX_INCHES)
    panels = [name for name in PREFIX_CURVES if any(name in c for _, c in runs.values())]
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for i, (run, (counts, curves)) in enumerate(runs.items()):
            if name in curves:
                style = dict(color=_COLORS[i % len(_COLORS)], marker="o", markersize=3)
                axes.plot(counts, curves[name], label=run, linewidth=1.4, **style)
        axes.set_xlabel("first tokens")
        axes.set_title(PREFIX_CURVES[name], fontsize=10)
        _plain(axes)
    if len(runs) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return png(figure)


def _energy_curve(axes, name: str, curve: np.ndarray, **style) -> None:
    label = f"{name}: {energy_area(curve):.3f}"
    axes.plot(np.arange(1, len(curve) + 1), curve, label=label, **style)


def _plain(axes) -> None:
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _labelled(image: np.ndarray, text: str) -> np.ndarray:
    """uint8 [H, W, 3] -> [LABEL + H, W, 3], with the text in the middle of what is added."""
    strip = Image.new("RGB", (image.shape[1], LABEL), (BACKGROUND,) * 3)
    middle = (image.shape[1] // 2, LABEL // 2)
    ImageDraw.Draw(strip).text(middle, text, fill=(0, 0, 0), anchor="mm")
    return np.concatenate([np.asarray(strip), image])
