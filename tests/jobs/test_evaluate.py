"""Tests of bar_jax/jobs/evaluate.py; the job itself runs in tests/test_pipeline.py."""

import numpy as np

from bar_jax import data
from bar_jax.config import default_config, tiny
from bar_jax.jobs import evaluate


class Counted:
    """Ten images, each of its own shade, that remember which of them were read."""

    num_classes = 10
    class_names = tuple("0123456789")

    def __init__(self):
        self.read = []

    def __len__(self):
        return 10

    def __getitem__(self, index):
        self.read.append(index)
        shade = np.full((16, 16, 3), index, np.uint8)
        return {"image": data.images.Image.fromarray(shade), "label": index, "name": str(index)}


def test_only_the_images_that_are_used_are_read(monkeypatch):
    """A whole training set would not fit into memory; they come from all of it."""
    source = Counted()
    monkeypatch.setattr(data, "open_images", lambda config, validation: source)
    images, labels = evaluate._real(tiny(default_config()), validation=False, limit=4)
    assert sorted(source.read) == [0, 3, 6, 9]
    assert labels.tolist() == images[:, 0, 0, 0].tolist() == [0, 3, 6, 9]
