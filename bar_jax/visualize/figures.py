"""The masked-bit paper's Figures 4 and 6: its numbers, and the same numbers of runs beside them.

And of runs alone: Figure 4 in PSNR, which the paper does not give, and the basis paper's Figure 7.

The paper's numbers are those of its tables and text alone; what only its figures show (other
tokenizers, BAR-FSQ at 128 bits) is not read off them. matplotlib is the extra `figures`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bar_jax.visualize.canvas import new_figure, png

FIGURE_4_INCHES = (6.0, 4.0)
FIGURE_6_INCHES = (10.5, 3.6)

# Table 1: bits per token -> rFID, 256 tokens an image.
RFID = {10: 1.25, 12: 1.13, 14: 1.06, 16: 1.02, 18: 0.93, 32: 0.70, 64: 0.50}
# Section 3.3: "at a budget of 65536 bits, [...] an rFID of 0.33", which is 256 bits per token.
RFID_AT_BUDGET = {256 * bits: rfid for bits, rfid in RFID.items()} | {65536: 0.33}
# Section 3.3; its bit budget is not stated.
RFID_SD_VAE = 0.62
# Table 1: head -> bits per token -> gFID without guidance, with guidance. The linear head ran out
# of memory at 32 and 64 bits.
GFID = {
    "linear": {
        10: (2.80, 1.73), 12: (2.70, 1.67), 14: (2.60, 1.52), 16: (2.90, 1.63), 18: (3.45, 1.91),
    },
    "bit": {
        10: (10.77, 2.63), 12: (14.52, 3.24), 14: (14.57, 2.85), 16: (23.11, 3.83),
        18: (21.81, 3.67), 32: (45.11, 5.81), 64: (73.67, 10.97),
    },
    "masked_bit": {
        10: (3.10, 1.48), 12: (2.10, 1.25), 14: (1.71, 1.22), 16: (1.68, 1.19), 18: (1.77, 1.20),
        32: (2.37, 1.37), 64: (2.60, 1.67),
    },
}  # fmt: skip
HEADS = tuple(GFID)

_NAMES = {"linear": "linear head", "bit": "bit head", "masked_bit": "masked-bit head"}
# Distinct with any colour vision (Okabe and Ito 2008), and by their shapes in grey.
_COLORS = {"linear": "#0072B2", "bit": "#009E73", "masked_bit": "#D55E00"}
_MARKERS = {"linear": "s", "bit": "^", "masked_bit": "o"}
_BLACK = "#222222"
_PAPER = dict(linewidth=1.2, markersize=5, markerfacecolor="white", markeredgewidth=1.2)
_RUN = dict(linestyle="none", markersize=8, markeredgecolor="white", markeredgewidth=0.8, zorder=3)


class Point(NamedTuple):
    """A number of a run.

    `quantity` is `reconstruction_fid`, `reconstruction_psnr`, or `sample_fid` / `sample_fid_guided`
    of the head `head`; x is the bit budget (Figure 4) or bits per token (Figure 6), y the number.
    """

    run: str
    quantity: str
    head: str
    x: float
    y: float


def draw_figure_4(points: Sequence[Point]) -> bytes:
    """rFID against the bit budget: the paper's BAR-FSQ, and points of runs. Returns a PNG."""
    figure = new_figure(FIGURE_4_INCHES)
    axes = figure.subplots()
    color = _COLORS["masked_bit"]
    axes.plot(*_xy(RFID_AT_BUDGET), color=color, marker="o", label="BAR-FSQ, paper", **_PAPER)
    axes.axhline(RFID_SD_VAE, color=_BLACK, linestyle=":", linewidth=1.2, label="SD-VAE, paper")
    _plot_runs(axes, points, _COLORS["linear"], "D", "these runs")
    _bits_axis(axes, RFID_AT_BUDGET, points, "bit budget (bits per image)")
    _fid_axis(axes, "rFID")
    axes.legend(frameon=False)
    return png(figure)


def draw_psnr(points: Sequence[Point]) -> bytes:
    """PSNR against the bit budget, of runs. Returns a PNG."""
    figure = new_figure(FIGURE_4_INCHES)
    axes = figure.subplots()
    points = sorted(points, key=lambda point: point.x)
    x, y = [point.x for point in points], [point.y for point in points]
    axes.plot(x, y, color=_COLORS["linear"], marker="D", **_PAPER)
    for point in points:
        axes.annotate(f"{point.y:.1f}", (point.x, point.y), (0, 7), textcoords="offset points",
                      ha="center", fontsize=9)  # fmt: skip
    _bits_axis(axes, x, points, "bit budget (bits per image)")
    axes.margins(y=0.15)
    axes.set_ylabel("PSNR of reconstructions (dB)")
    return png(figure)


def draw_convergence(metric: str, curves: Mapping[str, Sequence[tuple[int, float]]]) -> bytes:
    """A metric over the steps of training (basis paper, Figure 7). Returns a PNG.

    Args:
      metric: what it is called: `fid` or `classifier_fid`.
      curves: by run, steps and values.
    """
    figure = new_figure(FIGURE_4_INCHES)
    axes = figure.subplots()
    for run, curve in curves.items():
        axes.plot(*zip(*curve, strict=True), marker="o", markersize=4, label=run)
    axes.set_xlabel("steps")
    axes.set_ylabel(f"{metric} during training")
    axes.set_yscale("log")
    axes.legend(frameon=False)
    return png(figure)


def draw_figure_6(points: Sequence[Point]) -> bytes:
    """rFID and gFID (without and with guidance) against bits per token, by head. Returns a PNG."""
    figure = new_figure(FIGURE_6_INCHES)
    rfid, *gfid = figure.subplots(1, 3)
    rfid.plot(*_xy(RFID), color=_BLACK, marker="D", **_PAPER)
    chosen = [point for point in points if point.quantity == "reconstruction_fid"]
    _plot_runs(rfid, chosen, _BLACK, "D")
    _bits_axis(rfid, RFID, chosen, "bits per token")
    _fid_axis(rfid, "rFID")
    rfid.set_title("reconstruction (BAR-FSQ)")
    for column, axes in enumerate(gfid):
        quantity = ("sample_fid", "sample_fid_guided")[column]
        chosen = [point for point in points if point.quantity == quantity]
        for head, numbers in GFID.items():
            color, marker = _COLORS[head], _MARKERS[head]
            paper = {bits: pair[column] for bits, pair in numbers.items()}
            axes.plot(*_xy(paper), color=color, marker=marker, label=_NAMES[head], **_PAPER)
            _plot_runs(axes, [point for point in chosen if point.head == head], color, marker)
        _bits_axis(axes, RFID, chosen, "bits per token")
        _fid_axis(axes, "gFID")
        axes.set_title(("generation without guidance", "generation with guidance")[column])
    handles, names = gfid[0].get_legend_handles_labels()
    title = "open: the paper's numbers; filled: these runs" if points else "the paper's numbers"
    figure.legend(
        handles, names, title=title, loc="outside lower center", ncols=len(names), frameon=False
    )
    return png(figure)


def _xy(numbers: dict[float, float]) -> tuple[list[float], list[float]]:
    return list(numbers.keys()), list(numbers.values())


def _plot_runs(axes, points, color, marker, label=None) -> None:
    if points:
        x, y = [point.x for point in points], [point.y for point in points]
        axes.plot(x, y, color=color, marker=marker, label=label, **_RUN)


def _bits_axis(axes, numbers, points, label) -> None:
    """A logarithmic axis of bits, with ticks at powers of two."""
    axes.set_xscale("log", base=2)
    bits = [*numbers, *(point.x for point in points)]
    powers = [2**i for i in range(40) if min(bits) <= 2 * 2**i <= 4 * max(bits)]
    _plain_ticks(axes.xaxis, powers[:: 1 + len(powers) // 9])  # so that they do not touch
    axes.set_xlim(min(bits) / 1.25, max(bits) * 1.25)
    axes.set_xlabel(label)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _fid_axis(axes, label) -> None:
    """A logarithmic axis: good and bad tokenizers are an order of magnitude apart, heads two."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    steps = (1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 4, 5, 6, 8)
    ticks = [step * 10.0**power for power in range(-3, 4) for step in steps]
    # From one tick to another, so that the ends can be read.
    bottom = max((tick for tick in ticks if tick <= low), default=low)
    axes.set_ylim(bottom, min((tick for tick in ticks if tick >= high), default=high))
    _plain_ticks(axes.yaxis, ticks)
    axes.set_ylabel(label)


def _plain_ticks(axis, ticks) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
