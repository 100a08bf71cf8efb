"""Tests of bar_jax/pretrained/torchvision.py; values are compared in the golden cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from bar_jax.nn.convnext import ConvNeXt
from bar_jax.nn.vgg import VGG16
from bar_jax.pretrained import manifest
from bar_jax.pretrained.torchvision import convnext_depths, convnext_params, vgg16_params
from bar_jax.runtime.errors import InputError

SHAPES = {model.model: model.tensors for model in manifest.published()}


def zeros(shapes):
    """Tensors of these shapes that take no memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    "name, importer, module",
    [("vgg16", vgg16_params, VGG16()), ("convnext_s", convnext_params, ConvNeXt())],
)
def test_published_tensors_fill_every_parameter(name, importer, module):
    """Same tree and same shapes as a fresh network's."""
    params = importer(zeros(SHAPES[name]))
    images = jnp.zeros((1, 32, 32, 3))
    fresh = jax.eval_shape(module.init, jax.random.key(0), images)
    shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
    assert shapes(params) == shapes(meta.unbox(fresh)["params"])


def test_depths_are_those_of_the_names():
    assert convnext_depths(SHAPES["convnext_s"]) == (3, 3, 27, 3)


def test_a_missing_tensor_is_named():
    tensors = zeros(SHAPES["vgg16"])
    del tensors["features.19.bias"]
    with pytest.raises(InputError, match=r"no tensor features\.19\.bias"):
        vgg16_params(tensors)
