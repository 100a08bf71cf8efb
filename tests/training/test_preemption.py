"""Tests of bar_jax/training/preemption.py; real processes are stopped in tests/test_resume.py."""

import os
import signal
import subprocess
import sys

import pytest

from bar_jax.training import preemption


@pytest.fixture
def installed():
    """The handler of a job; the one before comes back."""
    before = signal.getsignal(signal.SIGTERM)
    preemption.install()
    yield
    preemption.install()
    signal.signal(signal.SIGTERM, before)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_is_remembered(installed):
    """Before it, `check` and `asked` see nothing; after it, and after a second one, both do."""
    preemption.check("early")
    assert not preemption.asked()
    for _ in range(2):
        terminate()
        assert preemption.asked()
        with pytest.raises(preemption.Preempted, match="^late$"):
            preemption.check("late")


def test_a_new_job_starts_unasked(installed):
    """Two jobs of one Python process: the stop was meant for the first."""
    terminate()
    preemption.install()
    preemption.check("second job")


def test_what_came_before_the_cluster_is_handed_over(installed):
    """JAX's handler, which tells the other processes, hears of it too."""
    heard = []
    terminate()
    signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    preemption.hand_over()
    assert heard == [1]


def test_without_a_signal_nothing_is_handed_over(installed):
    heard = []
    signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    preemption.hand_over()
    assert heard == []


def test_install_does_not_wait_for_jax():
    """Importing JAX takes seconds, in which SIGTERM would end the program with status 143."""
    code = "import sys, bar_jax.main; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
