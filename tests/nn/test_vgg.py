"""Tests of bar_jax/nn/vgg.py."""

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from bar_jax.nn.vgg import VGG16

CHANNELS = (2, 3, 4, 5, 6)


def features(net, x, key):
    params = meta.unbox(jax.jit(net.init)(key, x))
    return jax.jit(net.apply)(params, x), params["params"]


def test_shapes_of_the_stages(key):
    stages, _ = features(VGG16(CHANNELS), jnp.zeros((1, 32, 32, 3)), key)
    assert [len(stage) for stage in stages] == [3, 3, 4, 4, 4]
    for i, stage in enumerate(stages):
        side = 32 >> i
        assert stage[0].shape == (1, side, side, CHANNELS[i])
        assert stage[-1].shape == (1, side // 2, side // 2, CHANNELS[i])


def test_first_convolution_and_pooling(key):
    x = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    stages, params = features(VGG16(CHANNELS), x, key)
    padded = np.pad(x[0], ((1, 1), (1, 1), (0, 0)))
    kernel = np.asarray(params["conv1_1"]["kernel"])
    expected = max(0, np.sum(padded[4:7, 9:12, :, None] * kernel, axis=(0, 1, 2))[1])
    np.testing.assert_allclose(stages[0][0][0, 4, 9, 1], expected, atol=1e-5)
    last, pooled = np.asarray(stages[0][1][0]), stages[0][2][0]
    np.testing.assert_array_equal(pooled[3, 5], last[6:8, 10:12].max((0, 1)))


def test_bfloat16_keeps_float32_parameters(key):
    stages, params = features(VGG16(CHANNELS, jnp.bfloat16), jnp.ones((1, 32, 32, 3)), key)
    assert {leaf.dtype for leaf in jax.tree.leaves(stages)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
