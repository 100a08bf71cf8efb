"""Progress of long work: a bar where there is a terminal, else a line now and then."""

import collections
import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import jax
from tqdm import tqdm

logger = logging.getLogger(__name__)
LINE_EVERY = 10.0  # seconds between lines where there is no terminal
SILENCE = 60.0  # seconds without any line, of whatever part, after which one is written
AHEAD = 2  # steps that may be dispatched and not done; with 1, short steps wait for the CPU


@contextlib.contextmanager
def progress(name: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Gives the function that reports how many more units are done.

    Args:
      name: of the work, as it is to be read.
      total: units of all of it.
      unit: what is counted, in the singular.
      done: units that were done before.
    """
    terminal = has_terminal()
    start = reported = moved = time.monotonic()
    before = done

    def advance(count: int) -> None:
        nonlocal done, reported, moved
        done += count
        bar.update(count)
        now = moved = time.monotonic()
        if not terminal and now - reported > LINE_EVERY:
            rate, reported = (done - before) / (now - start), now
            left = format_seconds((total - done) / rate)
            logger.info("%s: %d/%d, %.3g %ss/s, %s left", name, done, total, rate, unit, left)

    def described() -> str:
        waited = format_seconds(time.monotonic() - moved)
        return f"{name}: {done}/{total} {unit}s, none more for {waited}"

    with (
        tqdm(total=total, initial=done, desc=name, unit=unit, disable=not terminal) as bar,
        never_silent(described),
    ):
        yield advance


class Steps:
    """Training steps: dispatched ahead of the devices, and counted as they are done.

    Attributes:
      bar: shows those that are done, where there is a terminal.
    """

    def __init__(self, stage: str, start: int, total: int):
        """A stage of `total` steps that goes on at step `start`."""
        self._stage, self._total, self._done = stage, total, start
        self._dispatched: collections.deque[Mapping[str, jax.Array]] = collections.deque()
        self._outputs: dict[str, jax.Array] = {}  # of the last step of every kind that is done
        self._moved, self._told = time.monotonic(), (start, time.monotonic())
        self.bar = tqdm(total=total, initial=start, desc=stage, disable=not has_terminal())

    def dispatched(self, outputs: Mapping[str, jax.Array]) -> None:
        """Adds a step, by arrays that it makes and nobody donates."""
        self._dispatched.append(outputs)

    def wait(self, ahead: int = 0) -> None:
        """Waits until all steps are done but the last `ahead` of them."""
        while len(self._dispatched) > ahead:
            self._outputs |= jax.block_until_ready(self._dispatched.popleft())
            self._done += 1
            self._moved = time.monotonic()
            self.bar.update()

    def described(self) -> str:
        """A line: the step, its losses and the speed since the last such line."""
        (before, then), now, done = self._told, time.monotonic(), self._done
        self._told = done, now
        where = f"{self._stage} step {done}/{self._total}"
        if done == before:
            waited = format_seconds(now - self._moved)
            return f"{where}: none more for {waited}, of compiling, evaluating or a long step"
        rate = (done - before) / (now - then)
        left = format_seconds((self._total - done) / rate)
        return f"{where}: {losses(jax.device_get(self._outputs))}, {rate:.3g} steps/s, {left} left"


def losses(values: Mapping[str, float]) -> str:
    """The losses among a step's numbers, for a line."""
    # A run that goes on in the middle of a game may have seen one player's step alone.
    names = (name for name in sorted(values, key=len) if name.endswith("loss"))
    return ", ".join(f"{name} {float(values[name]):.4f}" for name in names)


class _LastLine(logging.Handler):
    """Remembers when the last line was logged."""

    def __init__(self):
        super().__init__()
        self.time = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        self.time = time.monotonic()


@contextlib.contextmanager
def never_silent(described: Callable[[], str]) -> Iterator[None]:
    """Logs `described()` whenever nothing else was logged for a minute, for a block without a bar.

    From a thread: the main one may be in the middle of a long step or of a compilation.
    """
    if has_terminal():
        yield
        return
    last, ended, package = _LastLine(), threading.Event(), logging.getLogger("bar_jax")

    def speak():
        while not ended.wait(max(0.0, last.time + SILENCE - time.monotonic())):
            if time.monotonic() >= last.time + SILENCE:
                logger.info("%s", described())
                last.time = time.monotonic()

    package.addHandler(last)
    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        package.removeHandler(last)


def has_terminal() -> bool:
    """Whether to show bars: there is a terminal, and no other process that shows them."""
    return sys.stderr.isatty() and jax.process_index() == 0


def format_seconds(seconds: float) -> str:
    """12345.6 -> '3:25:46'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
