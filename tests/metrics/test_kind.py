"""Tests of bar_jax/metrics/kind.py: a metric is one file and one line in KINDS."""

import importlib.util
import json

import numpy as np
import pytest

from bar_jax import metrics
from bar_jax.config import default_config
from bar_jax.config.presets import tiny
from bar_jax.config.validation import validate
from bar_jax.jobs import evaluate
from bar_jax.metrics import reference
from bar_jax.runtime.errors import InputError

# Two metrics of a network of their own: the mean colour of an image.
TOY = '''
import jax.numpy as jnp
import numpy as np

from bar_jax.metrics import frechet
from bar_jax.metrics.features import FeatureNetwork
from bar_jax.metrics.kind import MetricKind


def load(config, mesh):
    mean = lambda params, images: {"mean": jnp.mean(images.astype(jnp.float32), axis=(1, 2))}
    return FeatureNetwork("colour", mean, {}, weights="none", resize="not at all")


def lighter(seen):
    """How much lighter samples are than the reference, and the deviation of samples."""
    return np.mean(seen.samples) - np.mean(seen.reference), np.std(np.mean(seen.samples, axis=1))


KIND = MetricKind(
    lighter,
    ("lighter", "lighter_std"),
    rows="colour/mean",
    load=load,
    compares=True,
    real=True,
    classes=2,
    note=lambda samples, compared, size: f"{samples} and {compared}",
)
FRECHET = frechet.kind("colour_fid", "colour/mean", ("mu_colour", "sigma_colour"), load=load)
'''
RNG = np.random.default_rng(0)
REAL, SAMPLES = (RNG.integers(0, high, (12, 8, 8, 3), np.uint8) for high in (200, 256))


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A run whose `samples.npz` and reference are there, and which asks for the toy's metrics."""
    (tmp_path / "toy.py").write_text(TOY)
    spec = importlib.util.spec_from_file_location("toy", tmp_path / "toy.py")
    toy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toy)
    monkeypatch.setitem(metrics.KINDS, "lighter", toy.KIND)
    monkeypatch.setitem(metrics.KINDS, "colour_fid", toy.FRECHET)
    for name, images in (("real", REAL), ("samples", SAMPLES)):
        np.savez(tmp_path / f"{name}.npz", arr_0=images, settings=json.dumps({}))
    config = tiny(default_config())
    config.workdir, config.data.image_size, config.data.source = str(tmp_path), 8, "digits"
    config.model.tokenizer.patch_size = 2
    config.evaluate.update(dict(reference=str(tmp_path / "real.npz"), batch_size=8))
    config.evaluate.metrics = ("lighter", "colour_fid")
    return config


def test_a_metric_brings_its_network_its_numbers_and_its_note(config):
    summary, means = evaluate.run(config), SAMPLES.mean(axis=(1, 2))
    assert summary["sample_lighter"] == pytest.approx(SAMPLES.mean() - REAL.mean(), rel=1e-5)
    assert summary["sample_lighter_std"] == pytest.approx(means.mean(1).std(), rel=1e-5)
    assert summary["sample_lighter_note"] == "12 and 12"
    assert "sample_lighter_std_note" not in summary
    assert summary["features_colour"] == "none; resized not at all"
    assert summary["sample_colour_fid"] > 100  # the means alone differ by 28 in each channel
    assert 0 < summary["real_lighter_std"] < 50  # of held-out digits


def test_what_is_kept_of_a_reference_serves_until_another_metric_needs_more(config, monkeypatch):
    """Here one that is added to KINDS after an evaluation."""
    looked = []
    extract = reference.extract
    monkeypatch.setattr(reference, "extract", lambda *a, **k: looked.append(k) or extract(*a, **k))
    config.evaluate.metrics = ("lighter",)
    with monkeypatch.context() as patch:
        patch.delitem(metrics.KINDS, "colour_fid")
        evaluate.run(config)
        evaluate.run(config)
    assert len(looked) == 1
    config.evaluate.metrics = ("colour_fid",)
    assert evaluate.run(config)["sample_colour_fid"] > 100
    assert len(looked) == 2


def test_what_a_metric_needs_of_the_data_set_is_checked_first(config):
    validate(config)
    config.data.num_classes = 1
    with pytest.raises(InputError, match="^evaluate.metrics: found lighter of one class"):
        validate(config)


def test_a_metric_that_is_not_listed_is_refused_with_those_that_are(config):
    config.evaluate.metrics = ("darker",)
    with pytest.raises(InputError, match="found 'darker', expected fid .* lighter | colour_fid$"):
        validate(config)
