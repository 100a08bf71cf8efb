"""A run that is cut off, again and again, ends as one that was not: bit for bit, on CPU.

Real processes, `python -m bar_jax.main`, and real signals. One workdir is trained in one go. In
another, the same command is stopped (SIGTERM) and killed (SIGKILL) in every stage and started
again each time, until it is finished. BAR_JAX_KILLS=20 adds kills at random moments of training.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from bar_jax.training import checkpoint

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("BAR_JAX_KILLS", "1"))  # at random moments, in each of the two stages
SEED = 0  # of those moments
STEPS = 60 + 60 * KILLS
SAVE_EVERY = 10
TIMEOUT = 300  # seconds that a process may take to get where it is awaited
STAGES = {"train_tokenizer": "tokenizer", "train_generator": "generator"}

FIELDS = {
    "data.image_size": 8,
    "model.tokenizer.encoder.depth": 1,
    "model.tokenizer.decoder.depth": 1,
    "model.generator.depth": 1,
    "model.generator.dropout": 0.1,  # the random numbers of a step matter
    "model.generator.order.anneal_end_steps": STEPS,
    "encode.shards": 20,
    "sample.guidance_scale": 1.0,
    "sample.unmasking_schedule": (16,),
} | {
    f"{stage}.{name}": value
    for stage in STAGES
    for name, value in {
        "steps": STEPS,
        "optimizer.warmup_steps": 20,
        "log_every": 1,
        "save_every": SAVE_EVERY,
        "evaluate_every": STEPS // 2,
        "keep_checkpoints": 2,
    }.items()
}


class Run:
    """A process at work on a workdir, which `stop` and `kill` cut off."""

    def __init__(self, workdir: Path, env: dict[str, str]):
        self.workdir = workdir
        flags = [f"--config.{name}={value}" for name, value in FIELDS.items()]
        command = [sys.executable, "-m", "bar_jax.main", "--config=configs/quickstart.py:tiny"]
        with workdir.with_suffix(".log").open("a") as log:
            self._process = subprocess.Popen(
                [*command, f"--workdir={workdir}", *flags], env=env, stdout=log, stderr=log
            )

    def wait(self) -> int:
        """Lets it go to its end; returns the exit status."""
        return self._process.wait(TIMEOUT)

    def stop(self) -> int:
        """Asks it to stop, as schedulers do; returns the exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> int:
        """Kills it; returns the exit status."""
        self._process.kill()
        return self.wait()

    def until(self, condition) -> None:
        """Waits for a condition while it works."""
        end = time.monotonic() + TIMEOUT
        while not condition():
            assert self._process.poll() is None, f"it ended early:\n{self.log()}"
            if time.monotonic() > end:
                self.kill()
                pytest.fail(f"nothing in {TIMEOUT} s:\n{self.log()}")
            time.sleep(0.001)

    def until_step(self, stage: str, step: int) -> None:
        """Waits until it has logged this step since it was started."""
        text, size = f'"stage": "{stage}", "step": {step},', self._logged_before(stage, step)
        metrics = self.workdir / "metrics.jsonl"
        self.until(lambda: metrics.exists() and metrics.read_text().count(text) > size)

    def _logged_before(self, stage: str, step: int) -> int:
        done = latest(self.workdir, stage)
        assert step > done, f"step {step} of {stage} is saved already"
        return 0 if not logged(self.workdir, stage, step) else 0

    def log(self) -> str:
        """The end of what it printed."""
        return self.workdir.with_suffix(".log").read_text()[-2000:]
