"""Tests of bar_jax/metrics/class_accuracy.py."""

import numpy as np
import pytest

from bar_jax.metrics.class_accuracy import class_accuracy, features, train_classifier


def _toy(labels, seed=0):
    """Images whose class is their colour channel, with noise: uint8 [B, 8, 8, 3]."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 60, (len(labels), 8, 8, 3))
    images[np.arange(len(labels)), :, :, labels] += 180
    return images.astype(np.uint8)


@pytest.fixture(scope="module")
def classifier():
    labels = np.tile(np.arange(3), 5)
    return train_classifier(_toy(labels), labels)


def test_reads_unseen_images_of_the_classes(classifier):
    labels = np.tile(np.arange(3), 4)
    assert class_accuracy(classifier, _toy(labels, seed=1), labels) == 1.0


def test_counts_the_images_that_are_read_as_their_label(classifier):
    """Two of eight labels are wrong."""
    labels = np.asarray([0, 1, 2, 0, 1, 2, 0, 1])
    told = np.asarray([0, 1, 2, 0, 1, 2, 1, 0])
    assert class_accuracy(classifier, _toy(labels, seed=2), told) == 0.75


def test_features_are_pixels_in_0_to_1():
    image = np.asarray([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(features(image), [[0, 0.2, 1]], rtol=1e-6)


def test_large_images_are_shrunk_by_averaging():
    image = np.zeros((1, 64, 64, 3), np.uint8)
    image[:, ::2] = 200  # every second row: each 2 x 2 box averages to 100
    np.testing.assert_allclose(features(image), np.full((1, 32 * 32 * 3), 100 / 255), rtol=1e-6)
