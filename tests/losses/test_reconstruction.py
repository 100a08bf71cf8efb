"""Tests of bar_jax/losses/reconstruction.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.losses.reconstruction import reconstruction, to_8_bits


@pytest.fixture
def sums():
    """Two images: one off by 0.5 everywhere, one off by -1 in a quarter of its values."""
    images = jnp.zeros((2, 2, 2, 3))
    reconstructions = jnp.zeros((2, 2, 2, 3)).at[0].set(0.5).at[1, 0, 0].set(-1.0)
    return reconstruction(images, reconstructions, l1=0.1, l2=2.0)


def test_terms_are_sums_of_means_over_pixels(sums):
    np.testing.assert_allclose([sums["l1"][0], sums["l2"][0]], [0.5 + 0.25, 0.25 + 0.25])


def test_loss_is_the_weighted_total(sums):
    np.testing.assert_allclose(sums["loss"][0], 0.1 * 0.75 + 2.0 * 0.5, rtol=1e-6)


def test_counts_are_examples(sums):
    assert [float(count) for _, count in sums.values()] == [2, 2, 2]


def test_is_computed_in_float32():
    images = jnp.zeros((1, 1, 1, 3))
    assert reconstruction(images, images.astype(jnp.bfloat16), 1.0, 1.0)["loss"][0].dtype == (
        jnp.float32
    )


def test_to_8_bits_clips():
    values = to_8_bits(jnp.asarray([-1.5, -1.0, 0.0, 1.0, 1.5]))
    np.testing.assert_allclose(values, [0, 0, 128 / 255, 1, 1], rtol=1e-6)


def test_a_pixel_that_is_right_has_no_gradient():
    images = jnp.zeros((1, 1, 3, 1))
    found = jnp.asarray([-0.5, 0.0, 0.5]).reshape(images.shape)
    gradient = jax.grad(lambda x: reconstruction(images, x, l1=1.0, l2=0.0)["loss"][0])(found)
    np.testing.assert_allclose(gradient.ravel(), np.array([-1, 0, 1]) / 3, rtol=1e-6)
