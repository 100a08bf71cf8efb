"""Tests of bar_jax/pretrained/inception.py; the whole network is compared in tests/nn."""

import numpy as np
import pytest

from bar_jax.pretrained.inception import inception_params
from bar_jax.runtime.errors import InputError


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    shapes = {"X.a.conv.weight": (4, 3, 1, 7), "fc.weight": (5, 4), "fc.bias": (5,)}
    shapes |= {f"X.a.bn.{name}": (4,) for name in ("weight", "bias", "running_mean")}
    found = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    # So small that the epsilon counts.
    found["X.a.bn.running_var"] = rng.uniform(0, 1e-3, 4).astype(np.float32)
    return found


def test_folds_batch_normalisation(tensors):
    """What a pixel of the normalised convolution is, written out."""
    x = np.random.default_rng(1).normal(size=(1, 7, 3))
    bn = {name.removeprefix("X.a.bn."): t.astype(np.float64) for name, t in tensors.items()}
    out = np.einsum("hwi,oihw->o", x, tensors["X.a.conv.weight"])
    out = (out - bn["running_mean"]) / np.sqrt(bn["running_var"] + 1e-3) * bn["weight"] + bn["bias"]
    conv = inception_params(tensors)["X"]["a"]["conv"]
    found = np.einsum("hwi,hwio->o", x, conv["kernel"]) + conv["bias"]
    np.testing.assert_allclose(found, out, rtol=1e-5)
    assert conv["kernel"].dtype == conv["bias"].dtype == np.float32


@pytest.mark.parametrize("name", ["X.a.bn.running_var", "fc.weight"])
def test_a_missing_tensor_is_named(tensors, name):
    del tensors[name]
    with pytest.raises(InputError, match=f"no tensor {name}"):
        inception_params(tensors)


def test_the_bias_of_the_classifier_is_not_read(tensors):
    del tensors["fc.bias"]
    assert set(inception_params(tensors)) == {"logits", "X"}
