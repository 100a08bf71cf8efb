"""Progress of long work: a bar where there is a terminal, else a line now and then."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

import jax
from tqdm import tqdm

logger = logging.getLogger(__name__)
LINE_EVERY = 10.0  # seconds between lines where there is no terminal


@contextlib.contextmanager
def progress(name: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Gives the function that reports how many more units are done.

    Args:
      name: of the work, as it is to be read.
      total: units of all of it.
      unit: what is counted, singular.
      done: units that were done before.
    """
    terminal = has_terminal()
    start = reported = time.monotonic()
    before = done

    def advance(count: int) -> None:
        nonlocal done, reported
        done += count
        bar.update(count)
        now = time.monotonic()
        if not terminal and now - reported > LINE_EVERY:
            rate, reported = (done - before) / (now - start), now
            left = format_seconds((total - done) / rate)
            logger.info("%s: %d/%d, %.3g %ss/s, %s left", name, done, total, rate, unit, left)

    with tqdm(total=total, initial=done, desc=name, unit=unit, disable=not terminal) as bar:
        yield advance


def has_terminal() -> bool:
    """Whether to show bars: there is a terminal, and no other process that shows them."""
    return sys.stderr.isatty() and jax.process_index() == 0


def format_seconds(seconds: float) -> str:
    """12345.6 -> '3:25:46'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
