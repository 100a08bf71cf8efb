"""Tests of bar_jax/jobs/sample.py: sets of images that survive, and do not depend on batches.

The generator is a stand-in that paints image i with i; real ones draw in tests/test_pipeline.py.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.config import default_config
from bar_jax.config.presets import tiny
from bar_jax.config.validation import validate
from bar_jax.jobs import sample
from bar_jax.runtime import preemption
from bar_jax.runtime.errors import InputError
from bar_jax.sampling import draw
from bar_jax.training import restore


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Of a run that draws 20 images in batches of 8; what was drawn is in `config_drawn`."""
    config = tiny(default_config())
    config.workdir = str(tmp_path)
    config.sample.batch_size = 8
    config.mesh.data = 8
    module = type("Module", (), {"generator": None})
    trained = restore.Trained(module, {}, step=2)
    for name in ("load_generator", "load_tokenizer"):
        monkeypatch.setattr(restore, name, lambda *_: trained)

    def paint(module, params, index):
        return jnp.tile(index[:, None, None, None].astype(jnp.uint8), (1, 4, 4, 3))

    monkeypatch.setattr(draw, "_image_keys", lambda key, index: index)
    monkeypatch.setattr(draw, "draw_tokens", lambda module, params, request: request.keys)
    monkeypatch.setattr(draw.codec, "pixels", paint)
    return config


def stored(config):
    with np.load(f"{config.workdir}/samples.npz") as file:
        return file["arr_0"][:, 0, 0, 0].tolist(), file["arr_1"].tolist(), str(file["settings"])


def cut_off(monkeypatch, batches):
    """SIGTERM comes after so many batches."""
    seen = []

    def check(where):
        seen.append(where)
        if len(seen) == batches:
            raise preemption.Preempted(where)

    monkeypatch.setattr(preemption, "check", check)


@pytest.mark.parametrize("batch_size", [8, 16, 24])
def test_every_class_equally_often_whatever_the_batch(config, batch_size):
    config.sample.batch_size = batch_size
    summary = sample.run(config)
    images, labels, settings = stored(config)
    assert images == list(range(20))
    assert labels == [*range(10), *range(10)]
    assert json.loads(settings)["sample_classes"] == "2 of every class" == summary["sample_classes"]


def test_what_was_drawn_is_kept_and_told(config, monkeypatch, tmp_path):
    cut_off(monkeypatch, batches=2)
    with pytest.raises(preemption.Preempted, match="^sample: 16 of 20 images are kept$"):
        sample.run(config)
    assert not (tmp_path / "samples.npz").exists()
    [images] = tmp_path.glob("samples.partial-*/images.npy")
    assert np.load(images)[:16, 0, 0, 0].tolist() == list(range(16))


def test_the_rest_alone_is_drawn(config, monkeypatch, tmp_path):
    cut_off(monkeypatch, batches=1)
    with pytest.raises(preemption.Preempted):
        sample.run(config)
    monkeypatch.setattr(preemption, "check", lambda where: None)
    painted, paint = [], draw.codec.pixels

    def count(module, params, index):
        painted.extend(np.asarray(index).tolist())
        return paint(module, params, index)

    monkeypatch.setattr(draw.codec, "pixels", count)
    config.sample.batch_size = 16
    sample.run(config)
    assert painted == list(range(8, 24))  # the last four fill up the batch
    assert stored(config)[0] == list(range(20))
    assert not list(tmp_path.glob("samples.partial-*"))


def test_a_set_that_was_begun_with_other_settings_is_left_alone(config, monkeypatch, tmp_path):
    cut_off(monkeypatch, batches=1)
    with pytest.raises(preemption.Preempted):
        sample.run(config)
    monkeypatch.setattr(preemption, "check", lambda where: None)
    before = {path: path.read_bytes() for path in tmp_path.glob("samples.partial-*/*")}
    config.seed = 1
    sample.run(config)
    assert stored(config)[0] == list(range(20))
    assert {path: path.read_bytes() for path in before} == before


def test_what_is_kept_and_damaged_is_drawn_anew(config, monkeypatch, tmp_path, caplog):
    cut_off(monkeypatch, batches=1)
    with pytest.raises(preemption.Preempted):
        sample.run(config)
    monkeypatch.setattr(preemption, "check", lambda where: None)
    [images] = tmp_path.glob("samples.partial-*/images.npy")
    images.write_bytes(images.read_bytes()[:-1000])
    sample.run(config)
    assert stored(config)[0] == list(range(20))
    assert "is damaged" in caplog.text


def test_classes_drawn_at_random_are_a_function_of_the_seed_and_said_so(config):
    config.sample.images = 200
    labels = draw.sample_labels(config)
    config.sample.images = 100
    np.testing.assert_array_equal(draw.sample_labels(config), labels[:100])
    config.seed = 1
    assert np.mean(draw.sample_labels(config) == labels[:100]) < 0.3
    counts = np.bincount(labels, minlength=10)
    assert (counts.min(), len(counts)) > (5, 9)
    assert sample.run(config)["sample_classes"] == "drawn at random"


def test_labels_and_a_number_of_images_contradict(config):
    config.sample.update(dict(images=3, labels=(1,)))
    with pytest.raises(InputError, match=r"^sample.images: found 3 with sample.labels=\(1,\)"):
        validate(config)
