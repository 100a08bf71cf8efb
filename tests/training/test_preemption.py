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
    """Before it, `check` and `watch` see nothing; after it, and after a second one, both do."""
    asked = preemption.watch(manager=None)
    preemption.check("early")
    assert not asked(3)
    for _ in range(2):
        terminate()
        assert asked(3)
        with pytest.raises(preemption.Preempted, match="^late$"):
            preemption.check("late")


def test_a_new_job_starts_unasked(installed):
    """Two jobs of one Python process: the stop was meant for the first."""
    terminate()
    preemption.install()
    preemption.check("second job")


def test_install_does_not_wait_for_jax():
    """Importing JAX takes seconds, in which SIGTERM would end the program with status 143."""
    code = "import sys, bar_jax.main; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
