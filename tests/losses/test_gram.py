"""Tests of bar_jax/losses/gram.py; values are compared in the golden cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from bar_jax.losses.gram import gram, gram_matrix
from bar_jax.losses.perceptual import vgg_pair
from bar_jax.nn.vgg import VGG16

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images():
    pair = np.random.default_rng(0).uniform(-1, 1, (2, 2, 24, 24, 3)).astype(np.float32)
    return jnp.asarray(pair[0]), jnp.asarray(pair[1])


@pytest.fixture(scope="module")
def loss():
    @functools.cache
    def make(dtype=jnp.float32):
        net = VGG16((2, 3, 4, 5, 6), dtype)
        x = jnp.zeros((1, 32, 32, 3))
        params = meta.unbox(jax.jit(net.init)(jax.random.key(0), x))["params"]
        return jax.jit(lambda x, y: gram(*vgg_pair(net, params, x, y, 32)))

    return make


def test_gram_matrix_by_hand():
    features = jnp.asarray([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 1, 2, 2)
    np.testing.assert_allclose(gram_matrix(features)[0], [[10 / 4, 14 / 4], [14 / 4, 20 / 4]])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_float32_value_per_example(loss, images, dtype):
    """That does not depend on the rest of the batch."""
    found = loss(dtype)(*images)
    assert found.shape == (2,) and found.dtype == jnp.float32
    assert np.all(found > 0)
    if dtype == jnp.float32:
        alone = loss()(*(x[1:] for x in images))
        np.testing.assert_allclose(found[1:], alone, rtol=1e-4)


def test_equal_images(loss, images):
    x, _ = images
    np.testing.assert_allclose(loss()(x, x), 0, atol=1e-9)
    np.testing.assert_allclose(jax.grad(lambda y: jnp.sum(loss()(x, y)))(x), 0, atol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_only_the_reconstruction_has_a_gradient(loss, images, dtype):
    total = lambda x, y: jnp.sum(loss(dtype)(x, y))
    of_original, of_reconstruction = jax.grad(total, (0, 1))(*images)
    assert not np.any(of_original)
    assert np.any(of_reconstruction) and np.all(np.isfinite(of_reconstruction))
