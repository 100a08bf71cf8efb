"""A part, a metric or a job is one file and one line: those of tests/toy/, by the command.

The README's "To add a part" is this test in words.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from bar_jax import bases, generators, heads, jobs, metrics, tokenizers
from bar_jax.main import main
from tests.toy import basis, generator, head, job, metric, tokenizer

ROOT = Path(__file__).resolve().parents[1]
RUN = [
    "main",
    f"--config={ROOT / 'configs/quickstart.py'}:tiny",
    *(f"--config.model.{part}.kind=toy" for part in ("tokenizer", "basis", "generator", "head")),
    "--config.model.tokenizer.bits=4",
    "--config.data.image_size=8",  # 2 x 2 tokens
    "--config.evaluate.metrics=toy",
    "--config.train_generator.evaluate_metrics=()",
    "--config.encode.batch_size=512",
    "--config.encode.shards=1",
]


@pytest.fixture(scope="module", autouse=True)
def toys():
    """One line for each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tokenizers.KINDS, "toy", tokenizer.KIND)
        patch.setitem(bases.KINDS, "toy", basis.KIND)
        patch.setitem(generators.KINDS, "toy", generator.KIND)
        patch.setitem(heads.KINDS, "toy", head.KIND)
        patch.setitem(metrics.KINDS, "toy", metric.KIND)
        patch.setitem(jobs.JOBS, "toy", job.JOB)
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, one_device):
    """A workdir in which the toy parts were trained, sampled from and evaluated."""
    workdir = tmp_path_factory.mktemp("toy")
    assert main([*RUN, "--config.job=pipeline", f"--workdir={workdir}"]) == 0
    return workdir


def test_toy_parts_are_trained_sampled_from_and_evaluated(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    with np.load(workdir / "samples.npz") as samples:
        images = samples["arr_0"]
    assert images.shape == (20, 8, 8, 3)
    assert summary["sample_lightness"] == pytest.approx(images.mean(), rel=1e-5)
    assert (summary["bits_per_token"], summary["tokens"], summary["generator_step"]) == (4, 4, 2)


def test_a_toy_job_works_on_them(workdir, capsys):
    assert main([*RUN, "--config.job=toy", f"--workdir={workdir}"]) == 0
    assert json.loads(capsys.readouterr().out)["first_place"] == 3


def test_they_are_described(one_device, capsys):
    steps = "--config.describe.steps=tokenizer,generator,sampler"
    assert main([*RUN, "--config.job=describe", steps]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bit_budget"] == 16 and found["sequence_length"] == 4
    analysis, synthesis = 4 * (48 + 1), 48 * (4 + 1)
    assert found["parameters"]["tokenizer_total"] == analysis + synthesis
    assert found["parameters"]["generator"]["head"] == 4 * (16 + 1)
    assert found["steps"].keys() == {"tokenizer", "generator", "sampler"}


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("model.generator.kind=mar", "found 'mar', expected causal | toy"),
        ("model.head.kind=diffusion", "expected masked_bit | bit | linear | toy"),
        ("model.basis.kind=learned", "expected raster | cells | subsample | toy | random"),
        ("evaluate.metrics=toys", "classifier_fid | toy"),
        ("job=toys", "benchmark | toy"),
    ],
)
def test_refusals_know_them(field, message, tmp_path, capsys):
    assert main([*RUN, f"--config.{field}", f"--workdir={tmp_path}"]) == 2
    assert message in capsys.readouterr().err


def test_a_field_that_a_toy_part_does_not_read_is_named(one_device, caplog):
    assert main([*RUN, "--config.job=describe", "--config.model.head.depth=2"]) == 0
    assert "without effect in this run: model.head.depth" in caplog.text
