"""Two processes with a device each do what one process with two does."""

import json
import math

import numpy as np
import pytest

pytestmark = pytest.mark.slow
STEPS = 20


@pytest.mark.parametrize("stage", ["train_tokenizer", "train_generator"])
def test_losses(one, two, logged, stage):
    """Of every step, and the norms of its gradient and update."""
    expected, found = logged(one), logged(two)
    assert found.keys() == expected.keys()
    for step in range(1, STEPS + 1):
        [*entries] = zip(found[stage, step], expected[stage, step], strict=True)
        for own, other in entries:
            assert own == pytest.approx(other, rel=1e-4), (stage, step)


def test_cache(one, two):
    """Byte for byte, but for the fingerprint of the tokenizer, whose last bits differ."""
    files = sorted(path.relative_to(one) for path in one.glob("cache/*/tokens-*"))
    assert len(files) == 5 and not list(two.glob("cache/*/*.tmp"))  # 3 of train, 2 of validation
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes()


def test_samples(one, two):
    for name in ("arr_0", "arr_1"):
        expected, found = (np.load(workdir / "samples.npz")[name] for workdir in (one, two))
        np.testing.assert_array_equal(found, expected)
    assert len(found) == 30


def test_summary(one, two):
    """All final numbers, metrics of the samples among them, but for the seconds and the paths."""
    expected, found = (json.loads((w / "summary.json").read_text()) for w in (one, two))
    assert found.keys() == expected.keys()
    assert {"sample_classifier_fid", "sample_class_accuracy"} < found.keys()
    for name, value in expected.items():
        if isinstance(value, float) and "seconds" not in name:
            assert math.isclose(found[name], value, rel_tol=1e-4), name
        elif isinstance(value, int):
            assert found[name] == value, name


def test_one_process_writes(one, two):
    """As many events and pictures as one process alone, and nothing left of unfinished files."""

    def names(workdir):
        files = (path for path in workdir.rglob("*") if path.is_file())
        parts = ("tokenizer", "generator")  # Orbax writes a file per process into these
        files = [file.relative_to(workdir) for file in files]
        return sorted(
            file.name.split(".out.tfevents")[0].split("-")[0]
            for file in files
            if file.parts[0] not in parts
        )

    assert names(two) == names(one)


def test_only_the_first_prints_the_summary(folder, two):
    logs = [next(folder.glob(f"two.*.{i}.log")).read_text() for i in range(2)]
    assert ['"tokenizer_step"' in log for log in logs] == [True, False]
    assert [f"process {i} of 2" in logs[i] for i in range(2)] == [True, True]
