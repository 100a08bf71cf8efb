"""Requests to stop: SIGTERM from a scheduler, or Ctrl-C, on one machine or on any of many."""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator

logger = logging.getLogger(__name__)
INTERRUPTED = 128 + signal.SIGINT  # exit status of a program that Ctrl-C has ended
STOPPED = 75  # exit status of one that was asked to stop and has saved: EX_TEMPFAIL, try again


class Preempted(Exception):
    """The run was asked to stop and has saved its work; the program ends with status 75."""


_received = False
_questions = 0  # asked so far; all processes ask the same ones


def install() -> None:
    """Remembers SIGTERM instead of dying of it; see `asked` and `check`.

    Python lets the main thread alone do that: in another one, as of a notebook's server, SIGTERM
    stays what it was.
    """
    global _received
    _received = False
    if not _in_main_thread():
        logger.info("not in the main thread: SIGTERM is not waited for")
        return
    signal.signal(signal.SIGTERM, _remember)


@contextlib.contextmanager
def hearing_ctrl_c() -> Iterator[None]:
    """For a block, SIGINT is remembered as SIGTERM is, and a second one ends the program at once.

    Also where the main thread is in the middle of a compilation, in which Python calls no handler:
    the numbers of signals are written to a pipe when they come, and a thread reads them.
    """
    if not _in_main_thread() or signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        yield  # a shell's job in the background: Ctrl-C is meant for another
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.signal(signal.SIGINT, _remember)
    others = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(reader,), daemon=True).start()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        signal.set_wakeup_fd(others)
        os.close(writer)  # which ends the thread


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _remember(signum, frame) -> None:
    global _received
    _received = True
    if signum == signal.SIGINT and _is_distributed():
        hand_over()  # JAX waits for SIGTERM alone


def _listen(reader: int) -> None:
    """Answers the first Ctrl-C with a line and ends the program at the second."""
    heard = 0
    with open(reader, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            if number[0] != signal.SIGINT:
                continue
            heard += 1
            if heard == 2:
                print("interrupted twice: ended at once", file=sys.stderr, flush=True)
                for child in multiprocessing.active_children():  # that read data
                    child.kill()
                os._exit(INTERRUPTED)
            logger.info("interrupted: saves and ends; once more, and it ends at once")


def hand_over() -> None:
    """Leaves SIGTERM to JAX, which tells all processes; called once `jax.distributed` has begun.

    Its handler took the place of ours. What came before is sent again.
    """
    if _received:
        os.kill(os.getpid(), signal.SIGTERM)


def asked() -> bool:
    """Whether to stop now.

    With several processes the answer is the same on all of them, and so they have to ask equally
    often: a signal to any of them is answered by True to one question, the same one, of all.
    """
    if not _is_distributed():
        return _received
    from jax.experimental import multihost_utils

    global _questions
    _questions += 1
    return multihost_utils.reached_preemption_sync_point(_questions)


def _is_distributed() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def check(where: str) -> None:
    """Raises `Preempted` if `asked`; for work that can be cut off anywhere."""
    if asked():
        raise Preempted(where)
