"""Being told to stop: SIGTERM from a scheduler, on one machine or on any of many."""

import logging
import os
import signal
import sys
import threading

logger = logging.getLogger(__name__)


class Preempted(Exception):
    """The run was told to stop and has saved its work; the program ends with status 0."""


_received = False
_questions = 0  # asked so far; all processes ask the same ones


def install() -> None:
    """Remembers SIGTERM instead of dying of it; `asked` and `check` tell.

    Python lets the main thread alone do that: in another one, as of a notebook's server, SIGTERM
    stays what it was.
    """
    global _received
    _received = False
    if threading.current_thread() is not threading.main_thread():
        logger.info("not in the main thread: SIGTERM is not waited for")
        return

    def remember(signum, frame):
        global _received
        _received = True

    signal.signal(signal.SIGTERM, remember)


def hand_over() -> None:
    """Leaves SIGTERM to JAX, which tells all processes; called once `jax.distributed` has begun.

    Its handler took the place of ours. What came before is sent again.
    """
    if _received:
        os.kill(os.getpid(), signal.SIGTERM)


def asked() -> bool:
    """Whether to stop now.

    With several processes the answer is the same on all of them, and so they have to ask equally
    often: SIGTERM on any of them is answered by True to one question, the same one, of all.
    """
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return _received
    from jax.experimental import multihost_utils

    global _questions
    _questions += 1
    return multihost_utils.reached_preemption_sync_point(_questions)


def check(where: str) -> None:
    """Raises `Preempted` if `asked`; for work that can be cut off anywhere."""
    if asked():
        raise Preempted(where)
