"""Tests of bar_jax/pretrained/bar_fsq.py: parity with the published tokenizer.

The arrays were recorded from the published code with random weights; sizes in `published_config`.
Images there are [B, 3, H, W].
"""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax.core import meta
from safetensors.numpy import load_file

from bar_jax import models
from bar_jax.errors import InputError
from bar_jax.pretrained.bar_fsq import (
    NOT_READ,
    POSITIONS,
    resize_positions,
    tokenizer_params,
    tokenizer_shapes,
)
from bar_jax.tokenizers import make_tokenizer

FOLDER = Path(__file__).parents[1] / "golden/masked_bit"
SIZES = {"encoder_depth": 2, "encoder_heads": 4, "decoder_depth": 4, "decoder_heads": 4}
TOLERANCE = {"atol": 5e-5, "rtol": 2e-4}


@pytest.fixture(scope="module")
def tensors():
    return load_file(FOLDER / "tokenizer.safetensors")


@pytest.fixture(scope="module")
def recorded():
    return dict(np.load(FOLDER / "tokenizer.npz"))


@pytest.fixture
def tokenizer(published_config):
    return make_tokenizer(published_config)


@pytest.fixture
def fresh(tokenizer):
    init = lambda key: models.init_tokenizer(tokenizer, key)  # noqa: E731
    return meta.unbox(jax.eval_shape(init, jax.random.key(0)))


def test_fills_every_parameter(tensors, fresh):
    """Same tree, same shapes, same type as a fresh tokenizer's."""
    params = tokenizer_params(tensors, grid=(4, 4), **SIZES)
    kinds = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    assert kinds(params) == kinds(fresh)


def test_same_bits_and_images(tensors, recorded, tokenizer):
    params = tokenizer_params(tensors, grid=(4, 4), **SIZES)

    @jax.jit
    def run(params, images, bits):
        apply = lambda x, method: tokenizer.apply({"params": params}, x, method=method)  # noqa: E731
        return apply(images, "encode"), apply(images, "__call__")[0], apply(bits, "decode")

    images = recorded["in_x"].transpose(0, 2, 3, 1)
    given = recorded["in_token_bits_flat"].reshape(2, 16, 10).astype(np.uint8)
    bits, reconstructed, decoded = run(params, images, given)
    np.testing.assert_array_equal(bits, recorded["out_indices"])
    assert 0 < np.mean(bits) < 1
    for found, expected in ((reconstructed, "out_image"), (decoded, "out_decode_tokens_image")):
        np.testing.assert_allclose(
            found.transpose(0, 3, 1, 2), recorded[expected], **TOLERANCE, err_msg=expected
        )


@pytest.mark.parametrize("grid", [(4, 4), (7, 7), (5, 3), (10, 12)])
def test_positions_are_resized_as_published(tensors, grid):
    """From 7 x 7: antialiased where the grid is smaller."""
    with np.load(FOLDER / "encoder.npz") as stored:
        expected = stored[f"out_pos_resized_{grid[0]}x{grid[1]}"]
    found = resize_positions(tensors[POSITIONS], grid)
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=1e-5)


def test_positions_of_no_square_grid():
    with pytest.raises(InputError, match="found 6 positions, expected those of a square grid"):
        resize_positions(np.zeros((6, 2)), (2, 3))


def test_names_and_shapes(tensors, fresh):
    """Together with what is not read, exactly those of the file."""
    shapes = tokenizer_shapes(fresh)
    assert shapes.pop(POSITIONS) == (None, 48)
    rest = {n: t.shape for n, t in tensors.items() if not n.startswith(NOT_READ)}
    assert rest.pop(POSITIONS) == (49, 48)
    assert shapes == rest
