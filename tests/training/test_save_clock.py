"""Tests of bar_jax/training/save_clock.py; the loop's use of it is tested in test_loop.py."""

from types import SimpleNamespace

import pytest

from bar_jax.training import save_clock
from bar_jax.training.save_clock import SaveClock


class Processes:
    """Two processes with clocks of their own; the second knows what the first one says alone."""

    def __init__(self, monkeypatch, minutes):
        self.clocks, self.now, self.questions = [0.0, 0.0], 0, 0
        time = SimpleNamespace(monotonic=lambda: self.clocks[self.now])
        monkeypatch.setattr(save_clock, "time", time)
        mesh = SimpleNamespace(broadcast_from_first=self._broadcast)
        monkeypatch.setattr(save_clock, "mesh", mesh)
        self.own = [SaveClock(minutes, 0) for _ in range(2)]

    def _broadcast(self, function):
        if self.now == 0:
            self._said = function()
            self.questions += 1
        return self._said

    def saved_at(self, steps, pace):
        """The steps that both save at; a step takes the first `pace(step)` s, the second none."""
        saved = []
        for step in range(1, steps + 1):
            self.clocks[0] += pace(step)
            due = []
            for self.now in range(2):
                due.append(self.own[self.now].is_due(step))
            assert due[0] == due[1], step
            for self.now in range(2) if due[0] else ():
                self.own[self.now].saved(step)
            saved += [step] if due[0] else []
        return saved


def test_saves_are_minutes_apart_by_the_first_clock(monkeypatch):
    processes = Processes(monkeypatch, minutes=10)
    assert processes.saved_at(1000, lambda step: 2.0) == [300, 600, 900]
    assert processes.questions < 100  # each is a message to all


def test_the_first_steps_say_little_of_the_pace(monkeypatch):
    """Steps that were dispatched seem to take no time: it is asked again soon enough."""
    processes = Processes(monkeypatch, minutes=10)
    saved = processes.saved_at(200, lambda step: 0.0 if step < 3 else 5.0)
    assert saved == [122]


@pytest.mark.parametrize("seconds", [700.0, 1e5])
def test_a_step_that_takes_longer_is_saved_after_it(monkeypatch, seconds):
    processes = Processes(monkeypatch, minutes=10)
    assert processes.saved_at(3, lambda step: seconds) == [1, 2, 3]


def test_by_steps_alone(monkeypatch):
    processes = Processes(monkeypatch, minutes=0)
    assert processes.saved_at(10, lambda step: 1e9) == []
    assert processes.questions == 0
