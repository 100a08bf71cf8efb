"""A workdir that version 26582c6 began: today's code goes on with it.

It is configs/quickstart.py:tiny with still smaller networks. The tokenizer is finished, the tokens
are cached, the generator was stopped at step 2 of 4 and sampled from; expected.json has digests of
the parameters as stored there, and the numbers of the steps that version went on with.
"""

import hashlib
import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from bar_jax.main import main
from bar_jax.runtime import workdir
from bar_jax.runtime.mesh import make_mesh
from bar_jax.training import restore

FOLDER = Path(__file__).parent / "old_workdir"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
ROOT = Path(__file__).parents[1]
NETWORK = "width=8 depth=1 heads=2".split()
# As it was typed then.
COMMAND = [
    *("main", f"--config={ROOT}/configs/quickstart.py:tiny", "--config.model.tokenizer.bits=4"),
    *(f"--config.model.tokenizer.encoder.{each}" for each in (*NETWORK, "mlp_width=8")),
    *(f"--config.model.tokenizer.decoder.{each}" for each in (*NETWORK, "mlp_width=8")),
    *(f"--config.model.generator.{each}" for each in (*NETWORK, "class_repeats=1")),
    *("--config.model.head.width=8", "--config.encode.shards=1"),
    *("--config.sample.unmasking_schedule=(2,2)", "--config.sample.images_per_class=1"),
    *("--config.sample.labels=(3,7)", "--config.train_tokenizer.optimizer.learning_rate=0.01"),
    *("--config.train_generator.steps=4", "--config.train_generator.evaluate_every=4"),
    *("--config.train_generator.evaluate_metrics=()",),
    "--config.train_generator.optimizer.learning_rate=0.1",
]


@pytest.fixture
def folder(tmp_path):
    with tarfile.open(FOLDER / "workdir.tar.xz") as archive:
        archive.extractall(tmp_path / "run", filter="data")
    return tmp_path / "run"


def _run(folder, job, *arguments):
    return main([*COMMAND, f"--workdir={folder}", f"--config.job={job}", *arguments])


@pytest.mark.parametrize("part", ["tokenizer", "generator"])
def test_parameters_are_those_that_were_stored(part, folder):
    """Of its own config as today's: the EMA's, which is what is used."""
    load = {"tokenizer": restore.load_tokenizer, "generator": restore.load_generator}[part]
    trained = load(workdir.read_config(folder), make_mesh(1, 1, 1, jax.devices()[:1]))
    found = {
        "/".join(["ema", *(key.key for key in path)]): hashlib.sha256(np.asarray(leaf).tobytes())
        for path, leaf in jax.tree_util.tree_leaves_with_path(trained.params)
    }
    digests = {name: value.hexdigest()[:16] for name, value in found.items()}
    expected = EXPECTED["parameters"][part].items()
    assert digests == {name: value for name, value in expected if name.startswith("ema/")}
    assert trained.step == 2


def test_the_guard_knows_what_it_was_begun_with(folder, capsys):
    assert _run(folder, "train_generator", "--config.train_generator.batch_size=32") == 2
    line = "train_generator.batch_size: found 32, expected 16, with which"
    assert line in capsys.readouterr().err
    assert _run(folder, "sample", "--config.model.tokenizer.bits=2",
                "--config.sample.unmasking_schedule=(2,)") == 2  # fmt: skip
    assert "model.tokenizer.bits: found 2, expected 4" in capsys.readouterr().err


def test_it_is_described(capsys):
    assert main([*COMMAND, "--config.job=describe"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["bits_per_token"] == 4


@pytest.mark.slow
def test_the_same_samples_are_drawn(folder):
    before = np.load(folder / "samples.npz")
    images, labels, digests = before["arr_0"], before["arr_1"], _digests(folder)
    (folder / "samples.npz").unlink()
    assert _run(folder, "sample") == 0
    after = np.load(folder / "samples.npz")
    np.testing.assert_array_equal(after["arr_1"], labels)
    np.testing.assert_allclose(after["arr_0"].astype(int), images.astype(int), atol=1)
    assert _digests(folder) == digests


def _digests(folder):
    summary = workdir.read_summary(folder)
    return [summary[name] for name in ("generator_step", "generator_digest", "tokenizer_digest")]


@pytest.mark.slow
def test_training_goes_on_as_it_did(folder):
    assert _run(folder, "train_generator") == 0
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    new = [line for line in lines if line["stage"] == "train_generator" and line["step"] > 2]
    for line, expected in zip(new, EXPECTED["train_generator"], strict=True):
        assert {name: line[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert (folder / "generator/4").is_dir()
