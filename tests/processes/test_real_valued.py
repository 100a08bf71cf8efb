"""A learned basis in front of xAR, over two processes that hold the same rows of every batch."""

import json

import numpy as np
import pytest

pytestmark = pytest.mark.exhaustive
DIGITS = {"config": "configs/basis/digits.py:tiny", "train_generator.steps": 6}
DIGITS |= {"train_generator.evaluate_every": 6, "train_generator.save_every": 6}


@pytest.fixture(scope="module")
def runs(folder, start):
    """Workdirs of one process whose devices cut rows, and of two that cut attention heads."""
    alone = start("rows", processes=1, devices=2, **DIGITS)
    together = start("heads", **DIGITS, **{"mesh.data": 1, "mesh.tensor": 2})
    for run in (alone, together):
        run.succeed()
    return [folder / name for name in ("rows", "heads")]


def test_every_image_is_counted_once(runs):
    """Processes that hold the same rows must not both add them up, or write them."""
    for workdir in runs:
        summary = json.loads((workdir / "summary.json").read_text())
        assert summary["evaluated_samples"] == 30
        assert summary["cached_train_images"] == 1621
    for split in ("train", "validation"):
        caches = [sorted(w.glob(f"cache/{split}/tokens-*")) for w in runs]
        assert [f.read_bytes() for f in caches[1]] == [f.read_bytes() for f in caches[0]]


def test_training(runs, logged):
    expected, found = (logged(workdir) for workdir in runs)
    for step in range(1, 7):
        losses = [one["train_generator", step][0]["loss"] for one in (expected, found)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_basis(runs):
    expected, found = (np.load(w / "basis/00000006.npy") for w in runs)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_samples(runs):
    """Real numbers that were rounded to 8 bits: some may fall on the other side."""
    expected, found = (np.load(w / "samples.npz")["arr_0"].astype(int) for w in runs)
    assert np.abs(found - expected).max() <= 1


def test_metrics(runs):
    expected, found = (json.loads((w / "summary.json").read_text()) for w in runs)
    for name in ("sample_classifier_fid", "basis_energy", "generator_loss"):
        assert found[name] == pytest.approx(expected[name], rel=1e-3), name
