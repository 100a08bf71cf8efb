"""Tests of bar_jax/metrics/classifier.py."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from bar_jax import data
from bar_jax.metrics import classifier
from bar_jax.metrics.classifier import class_accuracy, classify, train_classifier
from bar_jax.runtime.errors import InputError

CLASSES = 3


def _toy(labels, seed=0):
    """Images whose class is their brightest channel, with noise: uint8 [B, 8, 8, 3]."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 120, (len(labels), 8, 8, 3))
    images[np.arange(len(labels)), :, :, labels] += 60
    return images.astype(np.uint8)


@pytest.fixture(scope="module")
def toy():
    labels = np.tile(np.arange(CLASSES), 5)
    return _toy(labels), labels


@pytest.fixture(scope="module")
def params(toy):
    return train_classifier(*toy, CLASSES)


def _assert_equal_trees(a, b):
    a, b = (classifier.flatten_dict(tree, sep="/") for tree in (a, b))
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        np.testing.assert_array_equal(tensor, b[name], err_msg=name)


def test_reads_unseen_images_of_the_classes(params):
    labels = np.tile(np.arange(CLASSES), 20)
    logits = classify(params, _toy(labels, seed=1))["logits"]
    assert class_accuracy(logits, labels) == 1.0


@pytest.mark.exhaustive  # tests/test_pipeline.py reads all of them with what evaluation trains
def test_reads_held_out_digits():
    train, held_out = (
        next(data.eval_batches(source, image_size=8, crop="center", batch_size=len(source)))
        for source in (data.digits("train"), data.digits("validation"))
    )
    params = train_classifier(train["image"], train["label"], 10)
    logits = classify(params, held_out["image"])["logits"]
    assert class_accuracy(logits, held_out["label"]) >= 0.98


def test_the_same_seed_gives_the_same_parameters(params, toy):
    _assert_equal_trees(train_classifier(*toy, CLASSES), params)


def test_another_seed_gives_other_parameters(params, toy):
    other = train_classifier(*toy, CLASSES, seed=1)
    assert not np.array_equal(other["logits"]["kernel"], params["logits"]["kernel"])


def test_an_image_is_read_alike_in_any_batch(params, toy):
    images, _ = toy
    together, alone = classify(params, images), classify(params, images[3:4])
    for name, values in alone.items():
        np.testing.assert_allclose(values[0], together[name][3], rtol=1e-4, atol=1e-5)


def test_features_are_what_the_last_layer_reads(params, toy):
    outputs = classify(params, toy[0])
    kernel, bias = params["logits"]["kernel"], params["logits"]["bias"]
    logits = np.asarray(outputs["features"]) @ kernel + bias[None]
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-4, atol=1e-5)


def test_large_images_are_averaged_down_to_32_px(params):
    """In 8 bits: each 2 x 2 block of 64 px is one pixel, its mean rounded."""
    large = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    mean = large.reshape(2, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    # Halves are rounded to even by both, but a mean of four may come out a bit off in float32.
    np.testing.assert_allclose(classifier.shrink(large), np.rint(mean), atol=0)
    outputs, expected = classify(params, large), classify(params, np.rint(mean).astype(np.uint8))
    np.testing.assert_array_equal(outputs["features"], expected["features"])


def test_images_are_normalised_by_their_own_mean_and_deviation(params, toy):
    pixels = toy[0].reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(params["mean"], pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(params["std"], pixels.std(0), rtol=1e-6)


def test_images_of_one_colour_can_be_trained_on():
    images = np.full((4, 8, 8, 3), 7, np.uint8)
    params = train_classifier(images, np.asarray([0, 1, 0, 1]), 2)
    assert np.isfinite(classify(params, images)["logits"]).all()


def test_shifts_move_whole_images_by_up_to_an_eighth():
    """Each is a window of the image with its border repeated; all 25 windows come up."""
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")
    windows = {padded[i : i + 16, j : j + 16].tobytes() for i in range(5) for j in range(5)}
    shifted = classifier._shift(np.tile(image, (500, 1, 1, 1)), np.arange(500), seed=0)
    assert {one.tobytes() for one in shifted} == windows


def test_class_accuracy_counts_the_images_that_are_read_as_their_label():
    """Three of four."""
    logits = np.asarray([[0.1, 0.9], [2.0, -1.0], [-3.0, -2.0], [0.0, 1.0]])
    assert class_accuracy(logits, np.asarray([1, 0, 0, 1])) == 0.75


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_refuses_labels_out_of_range(toy, label):
    labels = toy[1].copy()
    labels[4] = label
    with pytest.raises(ValueError, match=f"{label}.*0 to 2"):
        train_classifier(toy[0], labels, CLASSES)


def test_what_is_saved_is_loaded(params, tmp_path):
    classifier.save(tmp_path / "classifier.safetensors", params)
    _assert_equal_trees(classifier.load(tmp_path / "classifier.safetensors"), params)


@pytest.mark.parametrize("missing", ["conv1/bias", "conv0/bias", "logits/bias", "mean"])
def test_refuses_a_file_without_a_tensor(params, tmp_path, missing):
    path = tmp_path / "classifier.safetensors"
    tensors = classifier.flatten_dict(params, sep="/")
    save_file({name: tensors[name] for name in tensors if name != missing}, path)
    with pytest.raises(InputError, match=rf"classifier\.safetensors.*{missing}"):
        classifier.load(path)


def test_refuses_a_file_with_tensors_of_something_else(params, tmp_path):
    path = tmp_path / "classifier.safetensors"
    save_file(classifier.flatten_dict(params, sep="/") | {"conv9/bias": np.zeros(3)}, path)
    with pytest.raises(InputError, match=r"classifier\.safetensors.*conv9/bias"):
        classifier.load(path)
