"""Tests of bar_jax/training/step_timer.py; the loop's use of it is tested in test_loop.py."""

import logging
import os
from types import SimpleNamespace

import jax
import pytest

from bar_jax.training import step_timer
from bar_jax.training.step_timer import Profiler, StepTimer

READY = {"loss": SimpleNamespace(is_ready=lambda: True)}
BUSY = READY | {"other": SimpleNamespace(is_ready=lambda: False)}


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is set."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(step_timer, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


@pytest.mark.parametrize(
    ("last", "waited"), [(READY, 2.0), (BUSY, 0.0), ({}, 0.0)], ids=["idle", "busy", "first"]
)
def test_input_counts_where_the_devices_had_nothing_else_to_do(clock, last, waited):
    timer = StepTimer("stage", "")
    with timer.input(last):
        clock.seconds += 2
    with timer.checkpoint():
        clock.seconds += 3
    expected = {"input_seconds": waited / 4, "checkpoint_seconds": 0.75}
    assert timer.split(4, 10.0) == expected | {"compute_seconds": (7 - waited) / 4}


def test_every_interval_is_its_own(clock):
    timer = StepTimer("stage", "")
    with timer.input(READY):
        clock.seconds += 2
    timer.split(1, 3.0)
    assert timer.split(2, 4.0) == {
        "input_seconds": 0.0, "checkpoint_seconds": 0.0, "compute_seconds": 2.0,
    }  # fmt: skip
    with timer.input(READY):
        clock.seconds += 2
    timer.reset()
    assert timer.split(1, 1.0)["input_seconds"] == 0


def test_slow_input_is_told_once_with_what_helps(clock, caplog):
    timer = StepTimer("train_tokenizer", "read faster")
    with caplog.at_level(logging.WARNING):
        for waited in (1.0, 5.0, 5.0):
            with timer.input(READY):
                clock.seconds += waited
            timer.split(10, 10.0)
    [record] = caplog.records
    assert record.message == (
        "train_tokenizer: the devices wait for input 50 % of the time, 0.5 s a step; read faster"
    )


def test_folders_of_a_trace_have_the_permissions_of_others(tmp_path, monkeypatch):
    """The profiler makes them without the group's."""
    traced = tmp_path / "profile" / "plugins"
    monkeypatch.setattr(jax.profiler, "start_trace", lambda _: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: os.makedirs(traced, 0o700))
    profiler = Profiler(range(1), tmp_path / "profile")
    profiler.before(0)
    profiler.close()
    (tmp_path / "other").mkdir()
    assert traced.stat().st_mode == (tmp_path / "other").stat().st_mode
