"""Figures drawn by matplotlib, the extra `figures`, without pyplot."""

import io

from bar_jax.runtime.errors import InputError

DOTS_PER_INCH = 200


def new_figure(inches: tuple[float, float]):
    """An empty figure, drawn by Agg; pyplot and its global state are not touched."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "job", "figures, and matplotlib is not installed", 'pip install "bar_jax[figures]"'
        ) from error
    figure = Figure(inches, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
