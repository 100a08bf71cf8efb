"""The lines and curves of training: losses, norms, speed, and where the time goes."""

import logging
import math
import time

import jax

from bar_jax.runtime.errors import NonFinite
from bar_jax.runtime.progress import format_seconds, losses
from bar_jax.runtime.writer import MetricsWriter
from bar_jax.training.step import Metrics
from bar_jax.training.step_timer import StepTimer

logger = logging.getLogger(__name__)


class StepLog:
    """Writes the numbers of steps, and the speed since the last time."""

    def __init__(
        self, stage: str, batch_size: int, steps: range, writer: MetricsWriter, timer: StepTimer
    ):
        """Begins before the first step.

        Args:
          batch_size: images of a step.
          steps: that are left.
          timer: where the time of an interval goes.
        """
        self._stage, self._batch_size, self._end = stage, batch_size, steps.stop
        self._writer, self._timer = writer, timer
        self._step, self._time = steps.start, None  # None while the first step may be compiling

    def restart(self, step: int) -> None:
        """Begins a new interval: what was done since the last one does not count as training."""
        self._step, self._time = step, time.monotonic()
        self._timer.reset()

    def write(self, step: int, metrics: Metrics, saved: int | None) -> None:
        """Logs a step's numbers.

        Args:
          saved: the step of the last checkpoint; None: there is none.

        Raises:
          NonFinite: a loss or a gradient norm is not finite.
        """
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._check(step, values, saved)
        now, eta = time.monotonic(), ""
        if self._time is not None:
            steps, seconds = step - self._step, now - self._time
            rate = steps / seconds
            values |= {"steps_per_second": rate, "images_per_second": rate * self._batch_size}
            values |= self._timer.split(steps, seconds)
            eta = f", {rate:.1f} steps/s, {format_seconds((self._end - step) / rate)} left"
        else:
            self._timer.reset()
        self._writer.scalars(step, values)
        logger.info("%s step %d/%d: %s%s", self._stage, step, self._end, losses(values), eta)
        self._step, self._time = step, now

    def _check(self, step: int, values: dict[str, float], saved: int | None) -> None:
        """Raises NonFinite if a loss or a gradient norm is."""
        for kind in ("loss", "grad_norm"):
            for name in (name for name in values if name.endswith(kind)):
                if not math.isfinite(values[name]):
                    when = f"between steps {self._step} and {step}"
                    kept = "no checkpoint was saved"
                    if saved is not None:
                        kept = f"the last save is step {saved}"
                    message = f"{self._stage}: {name} became {values[name]} {when}; {kept}"
                    raise NonFinite(message)
