"""When a checkpoint is due by the clock: at the same step on all processes, whose clocks differ."""

import time

from bar_jax.runtime import mesh


class SaveClock:
    """Tells when minutes have passed since the last save.

    Process 0's clock decides, and asking it is a message to all: so it is asked at few steps, which
    all processes know. From one question to the next the steps since the save at most double, and
    at most half of the time that is left passes at the pace so far.
    """

    def __init__(self, minutes: float, step: int):
        """Begins at a step; with 0 minutes no save is ever due."""
        self._seconds = 60 * minutes
        self.saved(step)

    def saved(self, step: int) -> None:
        """Begins anew: what is there of a step is saved."""
        self._step, self._began, self._ask = step, time.monotonic(), step + 1

    def is_due(self, step: int) -> bool:
        """Whether to save now; asked by all processes at every step."""
        if not self._seconds or step < self._ask:
            return False
        pause = mesh.broadcast_from_first(lambda: self._pause(step))
        self._ask = step + pause
        return pause == 0

    def _pause(self, step: int) -> int:
        """Steps until the next question; 0: save now."""
        passed, made = time.monotonic() - self._began, step - self._step
        left = self._seconds - passed
        if left <= 0:
            return 0
        return max(1, int(min(made, left / 2 * made / max(passed, 1e-9))))
