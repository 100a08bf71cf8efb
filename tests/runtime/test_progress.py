"""Tests of bar_jax/runtime/progress.py; the loop's use of it is tested in test_loop.py."""

import logging
import re
import threading
from types import SimpleNamespace

import pytest

from bar_jax.runtime import progress
from bar_jax.runtime.progress import Steps, never_silent

WORDS = logging.getLogger("bar_jax.anything")


class Output:
    """A loss that is done when it is asked for, and notes that."""

    def __init__(self, value, done):
        self._value, self._done = value, done

    def block_until_ready(self):
        self._done.append(self._value)
        return self

    def __float__(self):
        return self._value


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is set."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_the_bar_shows_what_is_done(monkeypatch):
    """Not what is dispatched, and no more than was asked to wait for."""
    monkeypatch.setattr(progress, "has_terminal", lambda: True)
    steps, done = Steps("stage", 10, 20), []
    with steps.bar:
        for i in range(5):
            steps.dispatched({"loss": Output(float(i), done)})
        assert steps.bar.n == 10
        steps.wait(2)
        assert (steps.bar.n, done) == (13, [0.0, 1.0, 2.0])
        steps.wait()
        assert (steps.bar.n, len(done)) == (15, 5)


def test_a_line_tells_the_step_its_losses_and_the_speed_since_the_last_line(clock):
    steps = Steps("stage", 10, 20)
    steps.dispatched({"loss": Output(0.5, []), "grad_norm": Output(9.0, [])})
    clock.seconds = 65.0
    assert steps.described().startswith("stage step 10/20: none more for 1:05, of compiling,")
    steps.dispatched({"discriminator_loss": Output(0.25, [])})
    steps.dispatched({"loss": Output(7.0, [])})
    clock.seconds = 75.0
    steps.wait(1)
    expected = "stage step 12/20: loss 0.5000, discriminator_loss 0.2500, 0.2 steps/s, 0:40 left"
    assert steps.described() == expected


def test_a_line_after_a_minute_in_which_nothing_was_logged(clock, monkeypatch, caplog):
    """Also not by another part: that postpones it."""
    caplog.set_level(logging.INFO)
    waits = []

    class Event(threading.Event):
        """Waiting takes no time but the clock's; something else is logged 40 s after the start."""

        def wait(self, timeout=None):
            waits.append(timeout)
            if len(waits) == 1:
                clock.seconds += 40
                WORDS.info("other")
                clock.seconds += timeout - 40
            elif len(waits) < 4:
                clock.seconds += timeout
            else:
                return super().wait()
            return False

    monkeypatch.setattr(progress, "threading", SimpleNamespace(Event=Event, Thread=Inline))
    with never_silent(lambda: f"told at {clock.seconds:.0f}"):
        pass
    assert waits == [60.0, 40.0, 60.0, 60.0]
    assert caplog.messages == ["other", "told at 100", "told at 160"]


class Inline:
    """A thread that runs when it is waited for."""

    def __init__(self, target, daemon):
        self._target, self.start = target, lambda: None

    def join(self):
        self._target()


def test_a_bar_is_word_enough(monkeypatch, capsys, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "has_terminal", lambda: True)
    monkeypatch.setattr(progress, "SILENCE", 0.0)
    threads = threading.active_count()
    with never_silent(lambda: "told"):
        assert threading.active_count() == threads
    assert not caplog.messages


def test_work_that_stands_still_is_told_too(monkeypatch, caplog):
    """As a batch of samples that takes minutes."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "SILENCE", 0.02)
    told = threading.Event()
    monkeypatch.setattr(
        progress.logger, "info", lambda text, *args: (WORDS.info(text, *args), told.set())
    )
    with progress.progress("sample", 10, "image", done=3) as advance:
        advance(2)
        told.wait(60)
    assert re.fullmatch(r"sample: 5/10 images, none more for 0:0\d", caplog.messages[0])
