"""Tests of bar_jax/pretrained/dinov2.py; values are compared in tests/nn."""

import numpy as np
import pytest

from bar_jax.pretrained.dinov2 import dinov2_params, resize_positions
from bar_jax.runtime.errors import InputError


def test_positions_are_resized_as_the_published_model_does():
    """By a factor that is a little more than that of the grids."""
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).normal(size=(1 + 37 * 37, 3)).astype(np.float32)
    square = torch.from_numpy(table[1:].reshape(1, 37, 37, 3).transpose(0, 3, 1, 2)).double()
    factor = (16 + 0.1) / 37
    expected = torch.nn.functional.interpolate(
        square, scale_factor=(factor, factor), mode="bicubic"
    )
    found = resize_positions(table, 16)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[0], table[0])
    expected = expected.numpy().transpose(0, 2, 3, 1).reshape(256, 3)
    np.testing.assert_allclose(found[1:], expected, atol=1e-6)


def test_positions_of_the_same_grid_stay():
    table = np.random.default_rng(0).normal(size=(1 + 4 * 4, 3))
    np.testing.assert_array_equal(resize_positions(table, 4), table)


def test_a_missing_tensor_is_named():
    with pytest.raises(InputError, match=r"no tensor patch_embed\.proj\.weight"):
        dinov2_params({"blocks.0.ls1.gamma": np.zeros(4, np.float32)})
