"""A run on one page: `report.html`, which needs no server and no other file.

Made of what the workdir holds, again at every evaluation: curves of all that was logged, the
pictures of the evaluations side by side in time, final numbers and the config.
"""

import base64
import collections
import html
import json
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from bar_jax.data import classes
from bar_jax.runtime.files import write_atomically

WIDTH, HEIGHT = 280, 130  # of a curve, px
POINTS = 400  # of a curve, at most
PICTURES = 8  # of a kind, at most, spread over the run
DECADES = 2  # from so many on, an axis is logarithmic
# What comes first; the rest follows in alphabetical order.
FIRST = ("loss", "validation_loss", "fid", "classifier_fid")
PICTURE_FOLDER = "pictures"
NOTE = "_note"  # ends the name of a remark about the number of the name before it

STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 76em; color: #222; }
figure { display: inline-block; margin: 0 1em 1em 0; vertical-align: top; }
figure.curve { width: 286px; }
figcaption { overflow-wrap: anywhere; font-size: 12px; color: #555; }
svg { border-left: 1px solid #bbb; border-bottom: 1px solid #bbb; }
polyline { fill: none; stroke: #0072b2; stroke-width: 1.5; }
circle { fill: #0072b2; }
img { max-width: 420px; image-rendering: pixelated; }
td { padding: 0 1em 0 0; }
"""


def write_report(workdir: str | os.PathLike) -> pathlib.Path:
    """Writes `report.html` into a workdir and returns its path; whole or not at all."""
    folder = pathlib.Path(workdir)
    summary = _summary(folder / "summary.json")
    parts = [f"<h1>{html.escape(folder.resolve().name)}</h1>"]
    for stage, logged in _logged(folder / "metrics.jsonl").items():
        last = max(steps[-1][0] for steps in logged.values())
        parts.append(f"<h2>{html.escape(stage)}, step {last}</h2>")
        names = sorted(logged, key=lambda name: (name not in FIRST, name))
        notes = {name: summary.get(f"{stage}_{name}{NOTE}", "") for name in names}
        parts += [curve(n, logged[n], notes[n]) for n in names if len(logged[n]) > 1]
        parts.append(_table({n: logged[n][0][1] for n in names if len(logged[n]) == 1}, notes))
        parts += _pictures(folder / PICTURE_FOLDER, stage)
    parts += _numbers(summary) + _classes(folder) + _config(folder / "config.json")
    page = f"<style>{STYLE}</style>\n" + "\n".join(parts)
    title = html.escape(folder.resolve().name)
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>\n'
    write_atomically(folder / "report.html", f"{head}{page}\n</html>\n".encode())
    return folder / "report.html"


def curve(name: str, points: Sequence[tuple[int, float]], note: str = "") -> str:
    """Values over steps as a figure; the vertical axis is logarithmic where values span decades.

    Args:
      note: what is to be known of the values.
    """
    points = [point for point in points if math.isfinite(point[1])]
    if not points:
        return f"<figure><figcaption>{html.escape(name)}: not finite</figcaption></figure>"
    first, last = points[0][0], points[-1][0]
    points = points[:: -(-len(points) // POINTS)] + points[-1:]
    low, high = min(y for _, y in points), max(y for _, y in points)
    logarithmic = low > 0 and high > low * 10**DECADES
    height = math.log if logarithmic else float
    span = (height(high) - height(low)) or 1.0

    def place(step: int, value: float) -> tuple[float, float]:
        x = (step - first) / ((last - first) or 1)
        return round(x * WIDTH, 1), round((1 - (height(value) - height(low)) / span) * HEIGHT, 1)

    places = [place(*point) for point in points]
    line = " ".join(f"{x},{y}" for x, y in places)
    x, y = places[-1]
    scale = ", logarithmic" if logarithmic else ""
    box = f'width="{WIDTH}" height="{HEIGHT}" viewBox="-3 -3 {WIDTH + 6} {HEIGHT + 6}"'
    note = f"<br>{html.escape(note)}" if note else ""
    caption = f"{html.escape(name)} {points[-1][1]:.4g} ({low:.4g} to {high:.4g}{scale})"
    return (
        f'<figure class="curve"><svg {box}>'
        f'<polyline points="{line}"/><circle cx="{x}" cy="{y}" r="3"/></svg>'
        f"<figcaption>{caption}<br>steps {first} to {last}{note}</figcaption></figure>"
    )


def _logged(path: pathlib.Path) -> Mapping[str, dict[str, list[tuple[int, float]]]]:
    """stage -> name -> steps and values."""
    stages: dict[str, dict] = collections.defaultdict(lambda: collections.defaultdict(list))
    for line in path.read_text().splitlines() if path.exists() else ():
        entry = json.loads(line)
        stage, step = entry.pop("stage"), entry.pop("step")
        for name, value in entry.items():
            stages[stage][name].append((step, value))
    return stages


def _pictures(folder: pathlib.Path, stage: str) -> list[str]:
    """The pictures of a stage by kind, in time."""
    kinds = collections.defaultdict(list)
    for path in sorted(folder.glob(f"{stage}-*-*.png")):
        kind, step = re.fullmatch(rf"{stage}-(.+)-(\d+)", path.stem).groups()
        kinds[kind].append((int(step), path))
    parts = []
    for kind, found in sorted(kinds.items()):
        parts.append(f"<h3>{html.escape(kind)}</h3>")
        spread = range(min(PICTURES, len(found)))
        chosen = sorted({round(i * (len(found) - 1) / max(1, len(spread) - 1)) for i in spread})
        for step, path in (found[i] for i in chosen):
            data = base64.b64encode(path.read_bytes()).decode()
            parts.append(
                f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(kind)}">'
                f"<figcaption>step {step}</figcaption></figure>"
            )
    return parts


def _summary(path: pathlib.Path) -> dict[str, object]:
    return json.loads(path.read_text()) if path.exists() else {}


def _numbers(summary: Mapping[str, object]) -> list[str]:
    """The final numbers, each with its note beside it."""
    values = {name: summary[name] for name in summary if not name.endswith(NOTE)}
    notes = {name.removesuffix(NOTE): summary[name] for name in summary if name.endswith(NOTE)}
    return ["<h2>Summary</h2>", _table(values, notes)] if values else []


def _classes(folder: pathlib.Path) -> list[str]:
    names = classes.read(folder)
    if names is None:
        return []
    table = _table({str(label): name for label, name in enumerate(names)})
    return ["<h2>Classes</h2>", f"<details><summary>labels</summary>{table}</details>"]


def _table(values: Mapping[str, object], notes: Mapping[str, str] = MappingProxyType({})) -> str:
    cells = ((name, str(value), notes.get(name, "")) for name, value in values.items())
    rows = (
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row if cell)}</tr>"
        for row in cells
    )
    return f"<table>{''.join(rows)}</table>"


def _config(path: pathlib.Path) -> list[str]:
    if not path.exists():
        return []
    return ["<h2>Config</h2>", f"<details><pre>{html.escape(path.read_text())}</pre></details>"]
