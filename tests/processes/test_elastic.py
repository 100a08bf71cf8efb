"""A run goes on with another number of processes and devices, and in another layout."""

import shutil

import numpy as np
import pytest

pytestmark = pytest.mark.slow
STAGE, HALF, STEPS = "train_generator", 10, 20


@pytest.fixture
def half_way(folder):
    """Copies a workdir as it was when its generator had made half of its steps."""

    def copy(workdir, name):
        for part in ("cache", "tokenizer", f"generator/{HALF}"):
            shutil.copytree(workdir / part, folder / name / part)
        for file in ("metrics.jsonl", "generator/config.json"):
            shutil.copy(workdir / file, folder / name / file)
        return folder / name

    return copy


@pytest.mark.parametrize(
    "whole, other",
    [
        pytest.param(
            *("two", {"processes": 1, "mesh.fsdp": 1}),
            id="2 devices of 2 processes to 1 of 1",
        ),
        pytest.param(
            *("one", {"processes": 2, "devices": 2, "mesh.data": 1, "mesh.fsdp": 4}),
            id="2 devices of 1 process to 4 of 2",
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_the_loss_curve_goes_on(pipelines, half_way, start, logged, whole, other):
    """The same examples in the same order: losses as if nothing had changed, to 1e-4."""
    workdir = half_way(pipelines / whole, f"from_{whole}")
    run = start(workdir.name, job=STAGE, **other)
    run.succeed()
    assert f"{STAGE}: goes on at step {HALF}" in run.log()
    expected, found = logged(pipelines / whole), logged(workdir)
    losses = [[one[STAGE, s][0]["loss"] for s in range(1, STEPS + 1)] for one in (expected, found)]
    assert losses[0][:HALF] == losses[1][:HALF]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
