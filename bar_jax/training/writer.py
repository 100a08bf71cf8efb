"""Logs of a run: a line of JSON per logged step, TensorBoard events, and pictures."""

import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Callable

import jax
import numpy as np
import tensorboardX

import bar_jax
from bar_jax.files import write_atomically
from bar_jax.visualize.grid import save_png
from bar_jax.visualize.report import PICTURE_FOLDER
from bar_jax.workdir import read_summary

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scipy", "pillow")


class MetricsWriter:
    """Writes `metrics.jsonl` and TensorBoard events of one stage; only process 0 writes.

    A run that goes on at step s first forgets what was logged after s, so that nothing
    stands in the file twice.
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
        self._lines = path.open("a")
        self._events = tensorboardX.SummaryWriter(
            str(path.parent / "tensorboard" / stage), purge_step=start_step or None
        )

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs numbers at a step."""
        if not self._active:
            return
        values = {name: float(value) for name, value in values.items()}
        self._lines.write(json.dumps({"stage": self._stage, "step": step, **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def histogram(self, step: int, name: str, values: list[float]) -> None:
        """Logs how a list of numbers is spread, as a TensorBoard event alone."""
        if self._active:
            self._events.add_histogram(name, np.asarray(values), step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Logs a picture, uint8 [H, W, 3], and keeps it in `pictures/` for the report."""
        if self._active:
            self._events.add_image(name, image, step, dataformats="HWC")
            self._pictures.mkdir(exist_ok=True)
            save_png(self._pictures / f"{self._stage}-{name}-{step:08}.png", image)

    def close(self) -> None:
        """Flushes and closes both."""
        if self._active:
            self._lines.close()
            self._events.close()


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
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    return {"with": told, "on": jax.devices()[0].device_kind}
