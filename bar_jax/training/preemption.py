"""Being told to stop: SIGTERM from a scheduler, on one machine or on any of many."""

from __future__ import annotations

import signal
import typing
from collections.abc import Callable

if typing.TYPE_CHECKING:  # `install` comes before JAX has been imported, which takes seconds
    import orbax.checkpoint as ocp


class Preempted(Exception):
    """The run was told to stop and has saved its work; the program ends with status 0."""


_asked = False


def install() -> None:
    """Remembers SIGTERM instead of dying of it; `watch` and `check` ask for it."""
    global _asked
    _asked = False

    def remember(signum, frame):
        global _asked
        _asked = True

    signal.signal(signal.SIGTERM, remember)


def check(where: str) -> None:
    """Raises `Preempted` if SIGTERM came; for work that can be cut off anywhere."""
    if _asked:
        raise Preempted(where)


def watch(manager: ocp.CheckpointManager) -> Callable[[int], bool]:
    """A function of the step that tells whether to save and stop now.

    Under `jax.distributed` all processes must agree on the step; Orbax sees to that, and the
    signal is its own (no handler of ours may be installed then).
    """
    import jax

    if jax.distributed.is_initialized():
        return manager.reached_preemption
    return lambda step: _asked
