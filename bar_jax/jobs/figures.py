"""The masked-bit paper's Figures 4 and 6, with the numbers of finished runs beside the paper's.

Writes `figure_4.png` and `figure_6.png`. `figures.runs` lists workdirs; what is read of each:

    summary.json  bit_budget                bits of an image: x of Figure 4
                  bits_per_token            of the tokenizer: x of Figure 6
                  reconstruction_fid        FID of reconstructed validation images: rFID
                  sample_fid                FID of the samples: gFID
                  sample_guidance_scale     what they were drawn with; above 1 is "with guidance"
                  sample_inception_score    not drawn
    config.json   model.head.kind

Numbers that a run does not have are left out, and the log says so.
"""

import logging
import math
import pathlib
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from bar_jax import workdir
from bar_jax.errors import InputError
from bar_jax.files import write_atomically
from bar_jax.training.writer import update_summary
from bar_jax.visualize.figures import HEADS, Point, draw_figure_4, draw_figure_6

logger = logging.getLogger(__name__)


def run(config: ConfigDict) -> dict[str, object]:
    """Draws both figures; returns the summary, which lists the points that are the runs'."""
    folder, summary = pathlib.Path(config.workdir), {}
    for name, find, draw in (
        ("figure_4", figure_4_points, draw_figure_4),
        ("figure_6", figure_6_points, draw_figure_6),
    ):
        points = _all_points(name, find, config.figures.runs)
        write_atomically(folder / f"{name}.png", draw(points))
        summary[f"{name}_points"] = [point._asdict() for point in points]
    return update_summary(config.workdir, summary)


def _all_points(name: str, find: Callable, runs: Sequence[str]) -> list[Point]:
    points = []
    for path in runs:
        found, missing = find(str(path).strip())
        points += found
        if missing:
            logger.info("%s: left out of %s, it has no %s", name, path, ", ".join(missing))
    return points


def figure_4_points(run: str) -> tuple[list[Point], list[str]]:
    """A run's points in Figure 4, and the names of the numbers that it lacks.

    Raises:
      InputError: the folder has no `summary.json`, or one that cannot be read.
    """
    numbers, missing = _numbers(run, "bit_budget", "reconstruction_fid")
    if missing:
        return [], missing
    return [Point(run, "reconstruction_fid", "", *numbers)], []


def figure_6_points(run: str) -> tuple[list[Point], list[str]]:
    """The same of Figure 6: rFID, and gFID of the run's head and guidance."""
    numbers, missing = _numbers(run, "bits_per_token", "reconstruction_fid")
    points = [] if missing else [Point(run, "reconstruction_fid", "", *numbers)]
    numbers, lacking = _numbers(run, "bits_per_token", "sample_fid")
    guidance_scale = workdir.read_summary(run).get("sample_guidance_scale")
    if not isinstance(guidance_scale, int | float):
        lacking.append("sample_guidance_scale")
    stored = pathlib.Path(run) / "config.json"
    model = workdir.read_json(stored).get("model", {}) if stored.exists() else {}
    head = model.get("head", {}).get("kind")
    if head not in HEADS:
        lacking.append(f"model.head.kind of {' | '.join(HEADS)} in config.json")
    if not lacking:
        quantity = "sample_fid_guided" if guidance_scale > 1 else "sample_fid"
        points.append(Point(run, quantity, head, *numbers))
    return points, list(dict.fromkeys(missing + lacking))


def _numbers(run: str, *names: str) -> tuple[list[float], list[str]]:
    """Numbers of a run's summary, and the names of those that are not there."""
    path = pathlib.Path(run) / "summary.json"
    if not path.exists():
        raise InputError("figures.runs", f"no {path}", "workdirs of runs that have finished a job")
    summary = workdir.read_summary(run)
    missing = [name for name in names if not _drawable(summary.get(name))]
    return [summary.get(name) for name in names], missing


def _drawable(value: object) -> bool:
    """Whether a value has a place on a logarithmic axis."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0
