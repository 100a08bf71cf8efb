"""Tests of bar_jax/pretrained/layout.py."""

import numpy as np
import pytest

from bar_jax.pretrained.layout import layer_norm, linear, same, to_ours, to_published
from bar_jax.runtime.errors import InputError

LAYOUT = {
    **same("table", "embed.weight"),
    **layer_norm("norm", "ln"),
    **linear("blocks/up", "layers.{layer}.fc", outputs="two o"),
    "blocks/qkv": ("layers.{layer}.{qkv}.weight", "layer qkv o i -> layer i qkv o"),
}
FIELDS = {"layer": range(3), "qkv": "qkv"}


def numbered(**shapes):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


@pytest.fixture
def tensors():
    layers = {f"layers.{i}.fc.weight": (4, 5) for i in range(3)}
    layers |= {f"layers.{i}.fc.bias": (4,) for i in range(3)}
    layers |= {f"layers.{i}.{name}.weight": (5, 5) for i in range(3) for name in "qkv"}
    return numbered(**{"embed.weight": (7, 5), "ln.weight": (5,), "ln.bias": (5,)}, **layers)


def test_linear_layers_are_turned_and_stacked(tensors):
    params = to_ours(tensors, LAYOUT, FIELDS, two=2, unknown=9)
    kernel, bias = params["blocks"]["up"]["kernel"], params["blocks"]["up"]["bias"]
    assert (kernel.shape, bias.shape) == ((3, 5, 2, 2), (3, 2, 2))
    np.testing.assert_array_equal(kernel[1, :, 1, 0], tensors["layers.1.fc.weight"][2])
    np.testing.assert_array_equal(bias[2, 1], tensors["layers.2.fc.bias"][2:])


def test_two_fields_are_two_axes(tensors):
    params = to_ours(tensors, LAYOUT, FIELDS, two=2)
    for i, name in enumerate("qkv"):
        found = params["blocks"]["qkv"][2, :, i]
        np.testing.assert_array_equal(found, tensors[f"layers.2.{name}.weight"].T)


def test_export_is_the_inverse(tensors):
    back = to_published(to_ours(tensors, LAYOUT, FIELDS, two=2), LAYOUT, FIELDS)
    assert back.keys() == tensors.keys()
    equal = {name: np.array_equal(back[name], tensor) for name, tensor in tensors.items()}
    assert all(equal.values())


def test_a_missing_tensor_is_named(tensors):
    del tensors["layers.1.k.weight"]
    with pytest.raises(InputError, match="no tensor layers.1.k.weight"):
        to_ours(tensors, LAYOUT, FIELDS, two=2)
