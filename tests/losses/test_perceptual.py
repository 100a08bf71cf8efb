"""Tests of bar_jax/losses/perceptual.py; values are compared in the golden cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from bar_jax.losses.perceptual import LinearHeads, convnext_distance, lpips, vgg_pair
from bar_jax.nn.convnext import ConvNeXt
from bar_jax.nn.vgg import VGG16

pytestmark = pytest.mark.slow
CHANNELS = (2, 3, 4, 5, 6)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    pair = rng.uniform(-1, 1, (2, 2, 32, 32, 3)).astype(np.float32)
    return jnp.asarray(pair[0]), jnp.asarray(pair[1])


@pytest.fixture(scope="module")
def losses():
    """name -> a loss of images and reconstructions, at tiny sizes."""
    key, x = jax.random.key(0), jnp.zeros((1, 32, 32, 3))

    @functools.cache
    def make(dtype):
        vgg, convnext = VGG16(CHANNELS, dtype), ConvNeXt((2, 3, 4, 5), (1, 2, 1, 1), 7, dtype)
        vgg_params, convnext_params = (
            meta.unbox(jax.jit(net.init)(key, x))["params"] for net in (vgg, convnext)
        )
        heads = {f"lin{i}": jnp.full(c, 0.3) for i, c in enumerate(CHANNELS)}
        return {
            "lpips": jax.jit(lambda x, y: lpips(heads, *vgg_pair(vgg, vgg_params, x, y, 32))),
            "convnext": jax.jit(
                lambda x, y: convnext_distance(convnext, convnext_params, x, y, 40)
            ),
        }

    return make


NAMES = ["lpips", "convnext"]


def test_linear_heads_by_hand():
    """Lengths 5 and 1: (0.6, 0.8) and (1, 0) differ by 0.16 and 0.64; zeros stay zeros."""
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0]]).reshape(1, 1, 2, 2)
    y = jnp.asarray([[1.0, 0.0], [0.0, 0.0]]).reshape(1, 1, 2, 2)
    params = {"lin0": jnp.asarray([1.0, 10.0])}
    found = LinearHeads((2,)).apply({"params": params}, [x], [y])
    np.testing.assert_allclose(found, [(0.16 + 6.4) / 2], rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_float32_value_per_example(losses, images, name, dtype):
    """That does not depend on the rest of the batch."""
    loss = losses(dtype)[name]
    found = loss(*images)
    assert found.shape == (2,) and found.dtype == jnp.float32
    assert np.all(found > 0)
    if dtype == jnp.float32:
        np.testing.assert_allclose(found[1:], loss(*(x[1:] for x in images)), rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_equal_images(losses, images, name):
    """No distance and no gradient, also where an image is all of one colour."""
    x = images[0].at[0].set(0.2)
    loss = losses(jnp.float32)[name]
    np.testing.assert_allclose(loss(x, x), 0, atol=1e-9)
    gradient = jax.grad(lambda y: jnp.sum(loss(x, y)))(x)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_original_has_no_gradient(losses, images, name):
    loss = losses(jnp.float32)[name]
    of_original, of_reconstruction = jax.grad(lambda x, y: jnp.sum(loss(x, y)), (0, 1))(*images)
    assert not np.any(of_original)
    assert np.any(of_reconstruction) and np.all(np.isfinite(of_reconstruction))


def test_features_of_zero_have_a_finite_gradient():
    """The root of a sum of squares that is zero."""
    heads, params = LinearHeads((2,)), {"lin0": jnp.ones(2)}
    zeros, ones = jnp.zeros((1, 1, 1, 2)), jnp.ones((1, 1, 1, 2))
    distance = lambda x: jnp.sum(heads.apply({"params": params}, [ones], [x]))
    assert np.all(np.isfinite(jax.grad(distance)(zeros)))
