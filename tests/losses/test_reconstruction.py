"""Tests of bar_jax/losses/reconstruction.py and of how its terms are added (bar_jax/losses)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.losses import weighted
from bar_jax.losses.reconstruction import absolute_error, squared_error, to_8_bits


@pytest.fixture
def pair():
    """Two images: one off by 0.5 everywhere, one off by -1 in a quarter of its values."""
    images = jnp.zeros((2, 2, 2, 3))
    return images, images.at[0].set(0.5).at[1, 0, 0].set(-1.0)


def test_errors_are_means_over_the_pixels_of_each_image(pair):
    np.testing.assert_allclose(absolute_error(*pair), [0.5, 0.25])
    np.testing.assert_allclose(squared_error(*pair), [0.25, 0.25])


@pytest.mark.parametrize("error", [absolute_error, squared_error])
def test_is_computed_in_float32(error):
    """1 + 2^-10 is 1 in bfloat16."""
    images = jnp.zeros((1, 1, 1, 3), jnp.bfloat16)
    found = error(images, jnp.full((1, 1, 1, 3), 1 + 2**-10))
    assert found.dtype == jnp.float32 and found > 1


def test_terms_are_added_with_their_weights():
    """0.5 (1 + 2) + 3 (10 + 20) over two examples; each term alone has no weight."""
    terms = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([10.0, 20.0])}
    sums = weighted(terms, {"a": 0.5, "b": 3.0, "not computed": 7.0})
    assert sums == {"loss": (91.5, 2), "a": (3, 2), "b": (30, 2)}


def test_to_8_bits_clips():
    values = to_8_bits(jnp.asarray([-1.5, -1.0, 0.0, 1.0, 1.5]))
    np.testing.assert_allclose(values, [0, 0, 128 / 255, 1, 1], rtol=1e-6)


def test_a_pixel_that_is_right_has_no_gradient():
    images = jnp.zeros((1, 1, 3, 1))
    found = jnp.asarray([-0.5, 0.0, 0.5]).reshape(images.shape)
    gradient = jax.grad(lambda x: absolute_error(images, x)[0])(found)
    np.testing.assert_allclose(gradient.ravel(), np.array([-1, 0, 1]) / 3, rtol=1e-6)
