"""Tests of bar_jax/metrics/features.py: the same numbers however images come in batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.metrics.features import FeatureNetwork, extract
from bar_jax.metrics.moments import gaussian
from bar_jax.runtime import mesh as mesh_lib

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (37, 4, 4, 3), np.uint8)
LABELS = RNG.integers(0, 5, 37)
PARAMS = {"kernel": RNG.normal(size=(48, 6)).astype(np.float32)}


def apply(params, images):
    x = images.reshape(images.shape[0], -1).astype(jnp.float32) / 255
    highest = jax.lax.Precision.HIGHEST
    features = jnp.tanh(jnp.matmul(x, params["kernel"], precision=highest))
    return {"pool": features, "logits": features[:, :3]}


NETWORK = FeatureNetwork("net", apply, PARAMS, "", "")


def batches(size, order=None, images=IMAGES):
    """The images in an order, the last batch filled up with rows of rubbish."""
    order = np.arange(len(images)) if order is None else order
    for begin in range(0, len(order), size):
        rows = order[begin : begin + size]
        short = size - len(rows)
        yield {
            "image": np.concatenate([images[rows], np.full((short, 4, 4, 3), 77, np.uint8)]),
            "index": np.concatenate([rows, np.full(short, -1)]),
            "label": np.concatenate([LABELS[rows], np.zeros(short, int)]),
            "mask": np.arange(size) < len(rows),
        }


def found(size, order=None, devices=8, **kept):
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        return extract(mesh, [NETWORK], batches(size, order), **kept)


@pytest.fixture(scope="module")
def expected():
    """Features in float64."""
    x = IMAGES.reshape(len(IMAGES), -1) / 255
    return np.tanh(x @ PARAMS["kernel"].astype(np.float64))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("size", [8, 16, 40])
def test_moments_do_not_depend_on_batches_padding_or_devices(expected, size, devices):
    features = found(size, devices=devices, moments=["net/pool"])
    assert features.count == 37
    mean, covariance = gaussian(features.moments["net/pool"])
    np.testing.assert_allclose(mean, expected.mean(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(covariance, np.cov(expected.T), rtol=1e-5, atol=1e-7)


def test_rows_and_labels_come_in_the_order_of_the_images(expected):
    order = np.random.default_rng(1).permutation(37)
    features = found(8, order, rows=["net/pool", "net/logits"])
    np.testing.assert_allclose(features.rows["net/pool"], expected, rtol=1e-5, atol=1e-6)
    assert features.rows["net/logits"].shape == (37, 3)
    np.testing.assert_array_equal(features.labels, LABELS)


def test_rows_are_kept_of_the_images_that_are_asked_for(expected):
    keep = np.arange(37) % 5 == 0
    features = found(8, moments=["net/pool"], rows=["net/pool"], keep=keep)
    np.testing.assert_allclose(features.rows["net/pool"], expected[keep], rtol=1e-5, atol=1e-6)
    assert (features.count, len(features.labels)) == (37, 8)


def test_images_may_lie_on_the_mesh_already(expected):
    mesh = mesh_lib.make_mesh()
    on_mesh = (
        batch | {"image": mesh_lib.put_batch(mesh, {"image": batch["image"]})["image"]}
        for batch in batches(8)
    )
    features = extract(mesh, [NETWORK], on_mesh, rows=["net/pool"])
    np.testing.assert_allclose(features.rows["net/pool"], expected, rtol=1e-5, atol=1e-6)


def test_what_is_not_asked_for_is_not_computed():
    def refuses(params, images):
        raise AssertionError

    other = FeatureNetwork("other", refuses, {}, "", "")
    mesh = mesh_lib.make_mesh()
    features = extract(mesh, [other, NETWORK], batches(8), moments=["net/pool"])
    assert list(features.moments) == ["net/pool"]


def test_processes_add_up(expected, monkeypatch):
    """Two processes, each with every other batch: what one gets from all is both."""
    order, shares = np.arange(37), []
    for process in (0, 1):
        own = np.concatenate([order[i : i + 8] for i in range(8 * process, 37, 16)])
        seen = []
        monkeypatch.setattr(mesh_lib, "from_all", lambda x, seen=seen: seen.append(x) or [x])
        found(8, own, moments=["net/pool"], rows=["net/pool"])
        shares.append(seen)
    both = iter(zip(*shares, strict=True))
    monkeypatch.setattr(mesh_lib, "from_all", lambda x: list(next(both)))
    features = found(8, moments=["net/pool"], rows=["net/pool"])
    assert features.count == 37
    mean, covariance = gaussian(features.moments["net/pool"])
    np.testing.assert_allclose(mean, expected.mean(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(covariance, np.cov(expected.T), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(features.rows["net/pool"], expected, rtol=1e-5, atol=1e-6)
