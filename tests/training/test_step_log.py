"""Tests of bar_jax/training/step_log.py; what the loop logs when is tested in test_loop.py."""

from types import SimpleNamespace

import pytest

from bar_jax.runtime.errors import NonFinite
from bar_jax.training import step_log, step_timer
from bar_jax.training.step_log import StepLog
from bar_jax.training.step_timer import StepTimer


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is set."""
    now = SimpleNamespace(seconds=0.0)
    for module in (step_log, step_timer):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


@pytest.fixture
def opened():
    """A log of steps 4 to 99 with batches of 8, its timer, and what it writes by step."""
    written, timer = {}, StepTimer("stage", "")
    writer = SimpleNamespace(scalars=written.__setitem__)
    return StepLog("stage", 8, range(4, 100), writer, timer), timer, written


def test_the_speed_is_that_since_the_last_line(clock, opened):
    """The first interval, with its compilation, has none."""
    log, timer, written = opened
    with timer.checkpoint():
        clock.seconds += 7
    log.write(5, {"loss": 3.0}, None)
    assert written[5] == {"loss": 3.0}
    clock.seconds += 2
    log.write(15, {"loss": 2.0}, None)
    speeds = {"steps_per_second": 5.0, "images_per_second": 40.0}
    seconds = {"input_seconds": 0.0, "checkpoint_seconds": 0.0, "compute_seconds": 0.2}
    assert written[15] == {"loss": 2.0} | speeds | seconds


def test_what_is_done_before_a_restart_does_not_count(clock, opened):
    """As an evaluation does not, nor what was saved before it."""
    log, timer, written = opened
    log.write(5, {}, None)
    with timer.checkpoint():
        clock.seconds += 7
    log.restart(5)
    clock.seconds += 2
    log.write(7, {}, None)
    assert (written[7]["steps_per_second"], written[7]["checkpoint_seconds"]) == (1.0, 0.0)


@pytest.mark.parametrize("saved, kept", [(None, "no checkpoint was saved"), (4, "is step 4")])
@pytest.mark.parametrize("name", ["discriminator_loss", "grad_norm"])
def test_a_number_that_is_not_finite_is_named(opened, name, saved, kept):
    log, _, written = opened
    with pytest.raises(NonFinite, match=f"^stage: {name} became nan between .* 4 and 6; .*{kept}"):
        log.write(6, {"l1": float("nan"), name: float("nan")}, saved)
    assert not written
