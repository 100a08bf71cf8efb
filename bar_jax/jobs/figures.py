"""The masked-bit paper's Figures 4 and 6, with the numbers of finished runs beside the paper's.

Writes `figure_4.png` and `figure_6.png`; where runs have a PSNR `psnr.png`: Figure 4 with PSNR in
the place of rFID; where runs measured FID in training `convergence.png` (basis paper, Figure 7);
and where job=basis measured prefixes `prefixes.png`: what the first tokens of images are worth.
`figures.runs` lists workdirs; what is read of each:

    config.json    the tokenizer's bits and grid, model.head.kind
    summary.json   reconstruction_fid        FID of reconstructed validation images: rFID
                   reconstruction_psnr       dB
                   sample_fid                FID of the samples: gFID
                   evaluated_guidance_scale  what they were drawn with; above 1: "with guidance"
                   prefix_tokens, prefix_... numbers of tokens, and what they are worth
    metrics.jsonl  fid, or else classifier_fid, of every evaluation of the generator

Numbers that a run does not have are left out, and the log says so.
"""

import json
import logging
import math
import pathlib
from collections.abc import Callable, Sequence

import jax
from ml_collections import ConfigDict

from bar_jax.runtime import workdir
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.files import write_atomically
from bar_jax.runtime.job import Job
from bar_jax.runtime.writer import update_summary
from bar_jax.tokenizers import bit_budget, sequence_grid
from bar_jax.visualize.basis import PREFIX_CURVES, draw_prefixes_of_runs
from bar_jax.visualize.figures import (
    Point,
    draw_convergence,
    draw_figure_4,
    draw_figure_6,
    draw_psnr,
)

logger = logging.getLogger(__name__)


def run(config: ConfigDict) -> dict[str, object]:
    """Draws the figures; returns the summary, which lists the points that are the runs'."""
    folder, summary = pathlib.Path(config.workdir), {}
    for name, find, draw in (
        ("figure_4", figure_4_points, draw_figure_4),
        ("figure_6", figure_6_points, draw_figure_6),
        ("psnr", psnr_points, draw_psnr),
    ):
        points = _all_points(name, find, config.figures.runs)
        if name == "psnr" and not points:
            continue
        _write(folder / f"{name}.png", draw(points))
        summary[f"{name}_points"] = [point._asdict() for point in points]
    metric, curves = convergence([str(path).strip() for path in config.figures.runs])
    if curves:
        _write(folder / "convergence.png", draw_convergence(metric, curves))
    prefixes = prefix_curves([str(path).strip() for path in config.figures.runs])
    if prefixes:
        _write(folder / "prefixes.png", draw_prefixes_of_runs(prefixes))
    return update_summary(config.workdir, summary)


def prefix_curves(runs: Sequence[str]) -> dict[str, tuple[list[int], dict[str, list[float]]]]:
    """By the name of a run's folder, numbers of tokens and what they are worth; none of others."""
    found = {}
    for run in runs:
        numbers = dict(_read(run)[1])
        counts = numbers.get("prefix_tokens")
        if counts:
            curves = {name: numbers[name] for name in PREFIX_CURVES if name in numbers}
            found[pathlib.Path(run).name] = counts, curves
    return found


def _write(path: pathlib.Path, picture: bytes) -> None:
    if jax.process_index() == 0:
        write_atomically(path, picture)


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
      InputError: the folder has no `summary.json` or `config.json`, or one that cannot be read.
    """
    return _against_budget(run, "reconstruction_fid")


def psnr_points(run: str) -> tuple[list[Point], list[str]]:
    """The same with the PSNR."""
    return _against_budget(run, "reconstruction_psnr")


def _against_budget(run, quantity) -> tuple[list[Point], list[str]]:
    config, summary = _read(run)
    budget = bit_budget.discrete(sequence_grid(config), 2**config.model.tokenizer.bits)
    return _points(run, summary, quantity, quantity, "", budget)


def figure_6_points(run: str) -> tuple[list[Point], list[str]]:
    """The same of Figure 6: rFID, and gFID of the run's head and guidance."""
    config, summary = _read(run)
    bits, head = config.model.tokenizer.bits, config.model.head.kind
    points, missing = _points(run, summary, "reconstruction_fid", "reconstruction_fid", "", bits)
    guidance_scale = summary.get("evaluated_guidance_scale")
    if not isinstance(guidance_scale, int | float):
        return points, [*missing, "evaluated_guidance_scale"]
    quantity = "sample_fid_guided" if guidance_scale > 1 else "sample_fid"
    generated, lacking = _points(run, summary, "sample_fid", quantity, head, bits)
    return points + generated, missing + lacking


def convergence(runs: Sequence[str]) -> tuple[str, dict[str, list[tuple[int, float]]]]:
    """The metric that runs measured at their evaluations, and by run its steps and values.

    It is FID if any of them measured that; runs without it are left out.
    """
    logged = {run: _evaluations(run) for run in runs}
    for metric in ("fid", "classifier_fid"):
        curves = {
            run: [(line["step"], line[metric]) for line in lines if _drawable(line.get(metric))]
            for run, lines in logged.items()
        }
        if any(curves.values()):
            return metric, {run: curve for run, curve in curves.items() if curve}
    return "", {}


def _evaluations(run: str) -> list[dict]:
    """What a run logged of its generator."""
    path = pathlib.Path(run) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    try:
        return [line for line in map(json.loads, lines) if line["stage"] == "train_generator"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(path, f"an unreadable line ({error})", "what a job logged") from error


def _read(run: str) -> tuple[ConfigDict, dict]:
    """A run's config and summary."""
    path = pathlib.Path(run) / "summary.json"
    if not path.exists():
        raise InputError("figures.runs", f"no {path}", "workdirs of runs that have finished a job")
    return workdir.read_config(run), workdir.read_summary(run)


def _points(run, summary, name, quantity, head, x) -> tuple[list[Point], list[str]]:
    """The point of a number, or the number's name if the run does not have it."""
    if not _drawable(summary.get(name)):
        return [], [name]
    return [Point(run, quantity, head, x, summary[name])], []


def _drawable(value: object) -> bool:
    """Whether a value has a place on a logarithmic axis."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


JOB = Job(run)
