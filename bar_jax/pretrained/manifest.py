"""Names and shapes: what a file should hold, what it holds, and whose file it is.

`third_party/*/*.json` list the tensors of each published model:

    model      its name, that of its file
    files      the files that hold these tensors
    tensors    name -> shape of what the model is made of
    optional   the same, by what it is, of what a file may lack: it is computed, or not read

Numbered tensors of one shape are folded: `blocks.{0..23}.norm1.weight`.
"""

import functools
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bar_jax.runtime import files
from bar_jax.runtime.errors import InputError

# None stands for any size, or (of a whole shape) for any shape.
Shape = tuple[int | None, ...] | None
LIKENESS = 0.5  # fraction of names and shapes from which on a file counts as like a model's


class Manifest(NamedTuple):
    """A published model: its tensors, and those that a file may hold or lack."""

    model: str
    tensors: Mapping[str, Shape]
    optional: Mapping[str, Shape]


def read_manifest(path: Path) -> Manifest:
    """A manifest of `third_party/`, unfolded."""
    stored = json.loads(path.read_text())
    optional = {name: shape for part in stored["optional"].values() for name, shape in part.items()}
    return Manifest(stored["model"], unfold(stored["tensors"]), unfold(optional))


@functools.cache
def published() -> tuple[Manifest, ...]:
    """All manifests that come with bar_jax."""
    return tuple(map(read_manifest, sorted(files.shipped("third_party").glob("*/*.json"))))


def fold(values: Mapping[str, object]) -> dict[str, object]:
    """Folds names that differ in their first number alone, where their values are equal.

    `{"a.0.b": x, "a.1.b": x, "a.2.b": y}` becomes `{"a.{0..1}.b": x, "a.2.b": y}`.
    """
    folded: dict[str, object] = {}
    alike: dict[tuple, dict[int, str]] = {}  # (before, after, value) -> number -> name
    for name, value in values.items():
        number = re.search(r"(?<=\.)(0|[1-9]\d*)(?=\.)", name)
        before, after = (name[: number.start()], name[number.end() :]) if number else (name, None)
        names = alike.setdefault((before, after, json.dumps(value)), {})
        names[int(number[0]) if number else 0] = name
    for (before, after, value), names in alike.items():
        # Of consecutive numbers, the difference to their rank is the same.
        runs = itertools.groupby(enumerate(sorted(names)), lambda pair: pair[1] - pair[0])
        for _, run in runs:
            found = [number for _, number in run]
            span = f"{before}{{{found[0]}..{found[-1]}}}{after}"
            folded[span if len(found) > 1 else names[found[0]]] = json.loads(value)
    return folded


def unfold(folded: Mapping[str, list[int]]) -> dict[str, Shape]:
    """The inverse of `fold`, with shapes as tuples."""
    shapes = {}
    for name, shape in folded.items():
        names = [name]
        if span := re.search(r"\{(\d+)\.\.(\d+)\}", name):
            numbers = range(int(span[1]), int(span[2]) + 1)
            names = [name.replace(span[0], str(number)) for number in numbers]
        shapes |= dict.fromkeys(names, tuple(shape))
    return shapes


def check(
    path: object,
    tensors: Mapping[str, np.ndarray],
    needed: Mapping[str, Shape],
    optional: Mapping[str, Shape],
    what: str,
) -> None:
    """Checks every name and shape of a file, and that its numbers are finite.

    Where `needed` are a published model's tensors, its manifest says what else there may be.

    Args:
      needed, optional: tensors that the file must hold, and those that it may.
      what: the model to be filled, for the message: `the configured generator`.

    Raises:
      InputError: with every tensor that is missing, unused or of another shape, and the published
        model that the file is of, if it is of another one; or the first tensor with NaN.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    own = next((m for m in published() if _same(m.tensors, needed)), None)
    if own:
        stated = {name: shape for name, shape in optional.items() if shape is not None}
        what, needed, optional = f"{own.model}, {what}", own.tensors, own.optional | stated
    wrong = _wrong(shapes, needed, optional)
    if not any(wrong.values()):
        check_finite(path, {name: tensors[name] for name in needed})
        return
    others = [m for m in published() if m is not own]
    whose = next((m for m in others if not any(_wrong(shapes, *m[1:]).values())), None)
    if own and whose:  # two published models: their names say all
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in wrong.items() if names)
        raise InputError(path, f"the tensors of {whose.model} ({counts})", f"those of {what}")
    likeness = lambda m: _likeness(shapes, {**m.optional, **m.tensors})
    best = max(others, key=likeness)
    found = "tensors that do not fit"
    if whose:
        found = f"the tensors of {whose.model}"
    elif likeness(best) > max(_likeness(shapes, {**optional, **needed}), LIKENESS):
        found = f"tensors most like those of {best.model}"
    lines = [f"those of {what}"]
    for kind, names in wrong.items():
        if names:
            lines.append(f"  {len(names)} {kind}:")
            lines += [f"    {name}{_in_words(value)}" for name, value in fold(names).items()]
    raise InputError(path, found, "\n".join(lines))


def check_finite(path: object, tensors: Mapping[str, np.ndarray]) -> None:
    """Refuses tensors of a file of which one holds NaN or infinity, by its name (InputError)."""
    for name, tensor in tensors.items():
        bad = int(tensor.size - np.count_nonzero(np.isfinite(tensor)))
        if bad:
            found = f"{name} with {bad} of {tensor.size} numbers that are NaN or infinite"
            raise InputError(path, found, "finite weights: another download or checkpoint")


def _wrong(
    shapes: Mapping[str, Shape], needed: Mapping[str, Shape], optional: Mapping[str, Shape]
) -> dict[str, dict[str, list]]:
    """What is wrong with tensors: kind -> name -> the shape found and the one wanted."""
    known = {**needed, **optional}
    return {
        "missing": {name: [] for name in needed if name not in shapes},
        "unused": {name: [] for name in shapes if name not in known},
        "of another shape": {
            name: [shapes[name], wanted]
            for name, wanted in known.items()
            if name in shapes and not _fits(shapes[name], wanted)
        },
    }


def _fits(shape: tuple[int, ...], wanted: Shape) -> bool:
    if wanted is None:
        return True
    pairs = itertools.zip_longest(shape, wanted, fillvalue=-1)
    return all(right in (found, None) for found, right in pairs)


def _same(shapes: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> bool:
    fits = (_fits(shape, wanted[name]) for name, shape in shapes.items())
    return shapes.keys() == wanted.keys() and all(fits)


def _likeness(shapes: Mapping[str, Shape], known: Mapping[str, Shape]) -> float:
    """Fraction of the names on either side that are on both, with a shape that fits."""
    right = sum(name in shapes and _fits(shapes[name], wanted) for name, wanted in known.items())
    return right / len(shapes.keys() | known.keys())


def _in_words(shapes: list) -> str:
    if not shapes:
        return ""
    found, wanted = (str(shape).replace("None", "any") for shape in shapes)
    return f": {found}, expected {wanted}"
