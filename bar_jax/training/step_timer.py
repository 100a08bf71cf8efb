"""Where the time of training goes, and traces of single steps for xprof."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping

import jax

from bar_jax.runtime import files

logger = logging.getLogger(__name__)
MUCH = 0.2  # share of the time that devices may wait for input without a warning


class StepTimer:
    """Splits the time between two logged steps into input, checkpoints and the rest.

    Steps are dispatched ahead of the devices: reading a batch costs time only where the devices
    have finished all that was dispatched before it came.
    """

    def __init__(self, stage: str, advice: str):
        """Times a stage.

        Args:
          stage: its name, for the warning.
          advice: what makes input faster.
        """
        self._stage, self._advice, self._warned = stage, advice, False
        self.reset()

    def reset(self) -> None:
        """Forgets what was spent so far: a new interval begins."""
        self._input = self._checkpoint = 0.0

    @contextlib.contextmanager
    def input(self, last: Mapping[str, jax.Array]) -> Iterator[None]:
        """Times the reading of a batch.

        Args:
          last: outputs of the last step that was dispatched; {} before the first.
        """
        began = time.monotonic()
        yield
        if last and all(value.is_ready() for value in last.values()):
            self._input += time.monotonic() - began

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[None]:
        """Times a save, as long as it holds up training."""
        began = time.monotonic()
        yield
        self._checkpoint += time.monotonic() - began

    def split(self, steps: int, seconds: float) -> dict[str, float]:
        """Seconds a step since the last `reset`, which is made here; warns of slow input once.

        Args:
          steps, seconds: of the interval.

        Returns:
          `input_seconds`, `checkpoint_seconds`, and of the rest, `compute_seconds`.
        """
        waited, saved = self._input, self._checkpoint
        self.reset()
        if waited > MUCH * seconds and not self._warned:
            self._warned = True
            logger.warning(
                "%s: the devices wait for input %.0f %% of the time, %.3g s a step; %s",
                *(self._stage, 100 * waited / seconds, waited / steps, self._advice),
            )
        rest = max(seconds - waited - saved, 0.0)
        names = ("input_seconds", "checkpoint_seconds", "compute_seconds")
        return {n: part / steps for n, part in zip(names, (waited, saved, rest), strict=True)}


class Profiler:
    """Traces steps, whatever way the loop is left."""

    def __init__(self, steps: range, folder: str | os.PathLike):
        """Traces `steps` into a folder that xprof (or TensorBoard's plugin) opens."""
        self._steps, self._folder, self._running = steps, str(folder), False

    def before(self, step: int) -> None:
        """Called before a step is dispatched."""
        if self._steps and step == self._steps[0]:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, outputs: object) -> None:
        """Called after a step was dispatched, with its outputs."""
        if self._running and step == self._steps[-1]:
            jax.block_until_ready(outputs)
            self.close()
            logger.info("profile: steps %d to %d are in %s", self._steps[0], step, self._folder)

    def close(self) -> None:
        """Ends a trace that is still running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            if os.path.isdir(self._folder):  # not in a bucket
                files.open_folders(self._folder)
