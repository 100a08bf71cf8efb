"""Tests of bar_jax/tokenizers/pixels.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.data import to_float
from bar_jax.tokenizers.pixels import Pixels
from bar_jax.training import restore

PIXELS = Pixels(image_size=8, patch_size=4)


@pytest.fixture
def images():
    """Every value of 8 bits, uint8 [2, 8, 8, 3]."""
    return np.resize(np.arange(256, dtype=np.uint8), (2, 8, 8, 3))


def test_the_cached_values_are_those_of_the_image(images):
    codes = np.asarray(PIXELS.apply({}, to_float(jnp.asarray(images)), method=PIXELS.encode))
    assert codes.dtype == np.uint8
    # Token 2 of 2 x 2 is the lower left patch; its numbers are row by row, pixel by pixel.
    np.testing.assert_array_equal(codes[:, 2], images[:, 4:, :4].reshape(2, -1))


def test_generators_model_numbers_in_minus_1_to_1(images):
    codes = jnp.asarray([[[0, 51, 255]]], jnp.uint8)
    np.testing.assert_allclose(PIXELS.latents(codes), [[[-1.0, -0.6, 1.0]]], atol=1e-7)


def test_decoding_is_the_way_back(images):
    given = to_float(jnp.asarray(images))
    codes = PIXELS.apply({}, given, method=PIXELS.encode)
    back = PIXELS.apply({}, PIXELS.latents(codes), method=PIXELS.decode)
    np.testing.assert_array_equal(back, given)


def test_there_are_no_parameters():
    assert restore.init_tokenizer(PIXELS, jax.random.key(0)) == {}
