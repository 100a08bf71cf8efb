"""Tests of bar_jax/training/preemption.py; real processes are stopped in tests/test_resume.py."""

import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from bar_jax import mesh as mesh_lib
from bar_jax.config import default_config, tiny
from bar_jax.jobs import sample
from bar_jax.models import Trained
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


@pytest.mark.parametrize("job", [True, False], ids=["job", "in training"])
def test_sampling_is_cut_off_as_a_job_and_not_in_training(installed, monkeypatch, job):
    """Training has a state to save first: its loop sees the signal after the evaluation."""
    monkeypatch.setattr(sample, "_sample", lambda *args: jax.numpy.zeros((16, 4, 4, 3), "uint8"))
    config, model = tiny(default_config()), Trained(None, {}, 0)
    config.sample.batch_size = 16
    module = type("Module", (), {"generator": None})
    labels = np.zeros(20, np.int32)
    draw = lambda: sample.sample_images(  # noqa: E731
        config, mesh_lib.make_mesh(), Trained(module, {}, 0), model, labels, interruptible=job
    )
    assert draw().shape == (20, 4, 4, 3)
    terminate()
    if job:
        with pytest.raises(preemption.Preempted):
            draw()
    else:
        assert draw().shape == (20, 4, 4, 3)
