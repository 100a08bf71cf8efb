"""Tests of bar_jax/jobs/encode.py; runs and resuming: tests/test_pipeline.py, test_resume.py."""

import numpy as np
from PIL import Image

from bar_jax.config.file import load_config
from bar_jax.data.caches import open_split
from bar_jax.jobs import encode


def test_the_cache_holds_adm_crops(tmp_path):
    """Of an image of 130 x 64 px at 32 px: halved by block means first, by hand.

    What it shows is constant along both axes of each 2 x 2 block, so block means are exact, and
    after them nothing is left to resize; torchvision's centre crop would resize by bicubic weights.
    """
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (32, 65, 3), np.uint8)
    for split in ("train", "test"):
        folder = tmp_path / "photos" / split / "only"
        folder.mkdir(parents=True)
        Image.fromarray(small.repeat(2, 0).repeat(2, 1)).save(folder / "0.png")
    config = load_config("configs/basis/cifar10.py:tiny")
    config.data.path, config.workdir = str(tmp_path / "photos"), str(tmp_path / "run")
    config.data.update(dict(source="folder", train_split="train", validation_split="test"))
    config.data.update(dict(num_classes=1, image_size=32, mirror=False))
    config.encode.batch_size = 8
    encode.run(config)
    tokens = open_split(config, "train")[0]["tokens"]
    patch = config.model.tokenizer.patch_size
    side = 32 // patch
    pixels = np.asarray(tokens).reshape(side, side, patch, patch, 3).swapaxes(1, 2)
    np.testing.assert_array_equal(pixels.reshape(32, 32, 3), small[:, 16:48])
