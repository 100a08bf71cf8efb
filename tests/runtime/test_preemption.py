"""Tests of bar_jax/runtime/preemption.py; real processes are stopped in tests/test_resume.py."""

import os
import signal
import subprocess
import sys

import pytest

from bar_jax.runtime import preemption


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


# --- Ctrl-C --------------------------------------------------------------------------------------


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def interruptible():
    """SIGINT interrupts, also where these tests are a shell's job in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_remembered_for_the_block(installed, interruptible):
    """After it SIGINT is what it was before."""
    with preemption.hearing_ctrl_c():
        assert not preemption.asked()
        interrupt()
        with pytest.raises(preemption.Preempted, match="^saved$"):
            preemption.check("saved")
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_ctrl_c_is_handed_over_as_sigterm(installed, interruptible, monkeypatch):
    """JAX, which tells the other processes, waits for that alone."""
    heard = []
    monkeypatch.setattr(preemption, "_is_distributed", lambda: True)
    signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    with preemption.hearing_ctrl_c():
        interrupt()
    assert heard == [1]


def test_ctrl_c_that_is_meant_for_another_job_of_the_shell(installed, interruptible):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with preemption.hearing_ctrl_c():
        interrupt()
        assert not preemption.asked()


def test_ctrl_c_twice_ends_at_once():
    """The first one is answered with a line; after the second nothing more is done."""
    code = """
import logging, os, signal, time
from bar_jax.runtime import preemption
logging.basicConfig(level=logging.INFO, format="%(message)s")
signal.signal(signal.SIGINT, signal.default_int_handler)
preemption.install()
with preemption.hearing_ctrl_c():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    print(preemption.asked(), flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
    print("went on")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "True\n"), done.stderr
    assert done.stderr.splitlines() == [
        "interrupted: saves and ends; once more, and it ends at once",
        "interrupted twice: ended at once",
    ]


def test_install_does_not_wait_for_jax():
    """Importing JAX takes seconds, in which SIGTERM would end the program with status 143."""
    code = "import sys, bar_jax.main; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
