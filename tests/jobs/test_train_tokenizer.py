"""Tests of bar_jax/jobs/train_tokenizer.py, at tiny sizes of every network."""

import json
import os
import signal

import jax
import numpy as np
import pytest

from bar_jax import data
from bar_jax.jobs import train_tokenizer
from bar_jax.pretrained import frozen
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime import preemption
from bar_jax.training import tokenizer as tokenizer_lib
from tests.training.test_tokenizer import MODULES, STEPS, config, networks


@pytest.fixture
def small_networks(monkeypatch):
    """The job's frozen networks at tiny sizes, laid out on its mesh."""

    def load(config, mesh):
        whole = lambda x: jax.device_put(np.asarray(x), mesh_lib.replicated(mesh))  # noqa: E731
        return jax.tree.map(whole, networks())

    monkeypatch.setattr(frozen, "load", load)
    monkeypatch.setattr(tokenizer_lib, "published_modules", lambda dtype: MODULES)


def job_config(workdir, **mesh):
    """Six steps of all losses on the digits."""
    chosen = config(train_tokenizer__steps=STEPS)
    chosen.workdir = str(workdir)
    chosen.mesh.update(mesh)
    chosen.train_tokenizer.update(
        dict(batch_size=8, save_every=100, evaluate_every=100, evaluate_images=8)
    )
    return chosen


def lines(workdir):
    """What was logged, by step and name."""
    logged = {}
    for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
        logged.setdefault(line["step"], {}).update(line)
    return logged


@pytest.mark.exhaustive  # five minutes; test_mesh.py has the layouts, test_resume.py the cuts
def test_the_job_in_two_layouts_and_cut_off(small_networks, tmp_path, monkeypatch):
    """One device against (2, 2, 2); and there, stopped before and in both networks' turns."""
    with monkeypatch.context() as patch:
        patch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
        patch.setattr(jax, "device_count", lambda: 1)
        train_tokenizer.run(job_config(tmp_path / "one"))
    train_tokenizer.run(job_config(tmp_path / "whole", data=2, fsdp=2, tensor=2))
    original = data.train_batches

    def stopping(*args, start_step, **kwargs):
        for step, batch in enumerate(original(*args, start_step=start_step, **kwargs), start_step):
            if step in (1, 3, 4):
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(data, "train_batches", stopping)
    before = signal.getsignal(signal.SIGTERM)
    try:
        for _ in range(3):
            preemption.install()
            with pytest.raises(preemption.Preempted):
                train_tokenizer.run(job_config(tmp_path / "cut", data=2, fsdp=2, tensor=2))
        preemption.install()
        train_tokenizer.run(job_config(tmp_path / "cut", data=2, fsdp=2, tensor=2))
    finally:
        signal.signal(signal.SIGTERM, before)
    one, whole, cut = (lines(tmp_path / name) for name in ("one", "whole", "cut"))
    names = {"loss", "gan", "alignment", "discriminator_loss", "reconstruction_psnr"}
    seen = set()
    for step in range(1, STEPS + 1):
        for name in names & cut[step].keys():
            assert cut[step][name] == whole[step][name], (step, name)
            np.testing.assert_allclose(
                whole[step][name], one[step][name], rtol=1e-3, err_msg=f"{name} at {step}"
            )
            seen.add(name)
    assert seen == names
