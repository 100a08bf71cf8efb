"""Logs of a run: a line of JSON per logged step, TensorBoard events, and pictures."""

import importlib.metadata
import json
import math
import os
import pathlib
import platform
import time
from collections.abc import Callable

import jax
import numpy as np
import tensorboardX.summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

import bar_jax
from bar_jax.runtime.files import naming, write_atomically
from bar_jax.runtime.workdir import read_summary
from bar_jax.visualize.grid import save_png
from bar_jax.visualize.report import PICTURE_FOLDER

FLUSH_SECONDS = 120  # TensorBoard, or who reads a mounted bucket, sees numbers this much later
HISTOGRAM_BINS = 30  # to which TensorBoard reduces any other number
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scipy", "pillow")


class MetricsWriter:
    """Writes `metrics.jsonl` and TensorBoard events of one stage; only process 0 writes.

    A run that goes on at step s first forgets what was logged after s, so that nothing
    stands in the file twice. A file that cannot be written raises an OSError with its name.
    """

    def __init__(self, workdir: str | os.PathLike, stage: str, start_step: int = 0):
        """Opens the logs of a stage that goes on at `start_step`."""
        self._stage = stage
        self._active = jax.process_index() == 0
        if not self._active:
            return
        path = pathlib.Path(workdir) / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._pictures = path.parent / PICTURE_FOLDER
        _forget(path, stage, start_step)
        self._path, self._lines, self._closed = path, path.open("a"), -math.inf
        self._events = _Events(path.parent / "tensorboard" / stage, start_step)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs numbers at a step."""
        if not self._active:
            return
        values = {name: float(value) for name, value in values.items()}
        with naming(self._path):
            self._lines.write(json.dumps({"stage": self._stage, "step": step, **values}) + "\n")
            self._lines.flush()
            # A bucket that is mounted shows others a file as it was when it was last closed.
            if time.monotonic() > self._closed + FLUSH_SECONDS:
                self._lines.close()
                self._lines, self._closed = self._path.open("a"), time.monotonic()
        for name, value in values.items():
            self._events.add(step, tensorboardX.summary.scalar(name, value))

    def histogram(self, step: int, name: str, values: list[float]) -> None:
        """Logs how a list of numbers is spread, as a TensorBoard event alone."""
        if self._active:
            values = np.asarray(values)
            self._events.add(
                step, tensorboardX.summary.histogram(name, values, bins=HISTOGRAM_BINS)
            )

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Logs a picture, uint8 [H, W, 3], and keeps it in `pictures/` for the report."""
        if self._active:
            self._events.add(step, tensorboardX.summary.image(name, image, dataformats="HWC"))
            self._pictures.mkdir(exist_ok=True)
            save_png(self._pictures / f"{self._stage}-{name}-{step:08}.png", image)

    def close(self) -> None:
        """Flushes and closes both."""
        if self._active:
            with naming(self._path):
                self._lines.close()
            self._events.close()


class _Events:
    """A file of TensorBoard events.

    tensorboardX's own writer hands events to a thread: on a full disk the thread dies, and the
    training waits for it for ever. Here a write that fails raises.
    """

    def __init__(self, folder: pathlib.Path, start_step: int):
        """Opens a new file; TensorBoard forgets what others have from `start_step` on, if not 0."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._flushed = folder, -math.inf
        with naming(folder):
            self._file = EventsWriter(str(folder / "events"))
            if start_step:
                restart = SessionLog(status=SessionLog.START)
                self._file.write_event(Event(step=start_step, session_log=restart))

    def add(self, step: int, summary) -> None:
        """Adds a tensorboardX summary."""
        with naming(self._folder):
            self._file.write_event(Event(step=step, wall_time=time.time(), summary=summary))
            if time.monotonic() > self._flushed + FLUSH_SECONDS:
                self._file.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the file."""
        with naming(self._folder):
            self._file.close()


def _forget(path: pathlib.Path, stage: str, after: int) -> None:
    """Drops the lines of a stage past a step, and a line that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if entry["stage"] != stage or entry["step"] <= after:
            kept.append(line + "\n")
    write_atomically(path, "".join(kept).encode())


def update_summary(
    workdir: str | os.PathLike,
    values: dict[str, object],
    forget: Callable[[str], bool] = lambda name: False,
) -> dict[str, object]:
    """Adds final numbers to the workdir's `summary.json`, a flat object, and returns all of it.

    Args:
      forget: whether what stands there under a name was of another time and goes.
    """
    path = pathlib.Path(workdir) / "summary.json"
    before = {name: value for name, value in read_summary(workdir).items() if not forget(name)}
    summary = before | values
    if jax.process_index() == 0:
        write_atomically(path, (json.dumps(summary, indent=2) + "\n").encode())
    return summary


def environment() -> dict[str, str]:
    """What numbers were computed with, for `summary.json`: versions, and the kind of device."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    versions = {"bar_jax": bar_jax.__version__, "python": platform.python_version(), **versions}
    words = ", ".join(f"{name} {version}" for name, version in versions.items())
    return {"with": words, "on": jax.devices()[0].device_kind}
