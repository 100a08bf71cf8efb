"""Where the time of a program goes: a trace of one run, as xprof reads it, in ten lines.

The profiler's own reader is enough: neither TensorFlow nor a network is needed.
"""

import collections
import contextlib
import glob
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
from jax.profiler import ProfileData

from bar_jax.runtime.files import open_folders


class Event(NamedTuple):
    """One operation that ran.

    Attributes:
      name: of the kernel or HLO operation.
      start, end: nanoseconds.
    """

    name: str
    start: float
    end: float


@contextlib.contextmanager
def recorded(folder: str) -> Iterator[None]:
    """Traces what the block runs into a folder, without the calls of Python."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(folder, profiler_options=options):
        yield
    open_folders(folder)


def summary(folder: str, count: int = 10) -> dict[str, object]:
    """The costliest operations of the newest trace in a folder, on its first device.

    Operations that differ in a number alone (one for each layer) are counted together.

    Returns:
      `device`; `seconds` from the first operation to the end of the last; `idle_share` of that in
      which none ran; `operations`: for each of the costliest its `name`, `seconds`, `share` of all
      operations and how many there were. Of an operation that holds others (a loop) only what
      these leave counts. If no device has operations, `operations` is empty.
    """
    files = sorted(glob.glob(f"{folder}/**/*.xplane.pb", recursive=True))
    if not files:
        raise FileNotFoundError(f"{folder}: the profiler wrote no trace")
    device, lines = _device_lines(ProfileData.from_file(files[-1]))
    return {"device": device, **summarise(lines, count)}


def summarise(lines: list[list[Event]], count: int = 10) -> dict[str, object]:
    """What `summary` returns but the device, of lines that ran side by side."""
    events = sorted((event for line in lines for event in line), key=lambda event: event.start)
    if not events:
        return {"seconds": 0.0, "idle_share": 0.0, "operations": []}
    busy, end = 0.0, events[0].start
    for event in events:
        busy += max(0.0, event.end - max(end, event.start))
        end = max(end, event.end)
    span = end - events[0].start
    own, times = collections.Counter(), collections.Counter()
    for line in lines:
        for name, nanoseconds in _own_times(line):
            own[name] += nanoseconds
            times[name] += 1
    whole = sum(own.values()) or 1.0
    return {
        "seconds": _rounded(span / 1e9),
        "idle_share": _rounded(1 - busy / span) if span else 0.0,
        "operations": [
            {
                "name": name,
                "seconds": _rounded(nanoseconds / 1e9),
                "share": _rounded(nanoseconds / whole),
                "count": times[name],
            }
            for name, nanoseconds in own.most_common(count)
        ],
    }


def _own_times(line: Iterable[Event]) -> Iterator[tuple[str, float]]:
    """(name, nanoseconds without those of operations inside) of the events of one line."""
    open_events: list[list] = []  # [event, nanoseconds of what is inside]
    for event in sorted(line, key=lambda event: (event.start, -event.end)):
        while open_events and open_events[-1][0].end <= event.start:
            yield _closed(*open_events.pop())
        # What only overlaps with the one before it is beside it, not inside.
        if open_events and event.end <= open_events[-1][0].end:
            open_events[-1][1] += event.end - event.start
        open_events.append([event, 0.0])
    while open_events:
        yield _closed(*open_events.pop())


def _closed(event: Event, inside: float) -> tuple[str, float]:
    return event.name, max(0.0, event.end - event.start - inside)


def _device_lines(data: ProfileData) -> tuple[str, list[list[Event]]]:
    """The name of the first device that ran something, and its events, a list for each line.

    GPUs have a line for each stream; TPUs one of operations, among others that repeat them in
    coarser terms; a CPU has its operations, marked, among those of the CPU's threads.
    """
    # Where a warning of the reader's own types is an error, it ends the process.
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        return _lines_of_first(data)


def _lines_of_first(data: ProfileData) -> tuple[str, list[list[Event]]]:
    planes = sorted(data.planes, key=lambda plane: plane.name)
    for plane in planes:
        if not plane.name.startswith("/device:"):
            continue
        lines = {line.name: line for line in plane.lines}
        streams = [line for name, line in lines.items() if name.startswith("Stream")]
        if "XLA Ops" in lines and not streams:
            streams = [lines["XLA Ops"]]
        found = [list(_events(line.events, marked=False)) for line in streams]
        if any(found):
            return plane.name, found
    for plane in planes:
        if plane.name == "/host:CPU":
            found = [list(_events(line.events, marked=True)) for line in plane.lines]
            return plane.name, [line for line in found if line]
    return "none", []


def _events(events: Iterable, marked: bool) -> Iterator[Event]:
    """Events that took time; of those `marked` only operations of a program."""
    for event in events:
        if event.duration_ns <= 0:
            continue
        operation = next((value for key, value in event.stats if key == "hlo_op"), None)
        if marked and (operation is None or event.name.startswith("end: ")):
            continue
        yield Event(
            _named(event.name, operation), event.start_ns, event.start_ns + event.duration_ns
        )


def _named(name: str, operation: str | None) -> str:
    """One name for all layers' operations; a library's kernel also says what it was called for."""
    plain = lambda text: re.sub(r"([._]\d+)+$", "", text.partition(" = ")[0].lstrip("%"))[:120]
    if operation is None or plain(operation) == plain(name):
        return plain(name)
    return f"{plain(operation)}: {plain(name)}"


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")
