"""Tests of bar_jax/nn.imagenet.py."""

import jax.numpy as jnp
import numpy as np

from bar_jax.nn.imagenet import MEAN, STD, normalized


def test_black_and_white():
    images = jnp.stack([jnp.full((1, 1, 3), -1.0), jnp.full((1, 1, 3), 1.0)])
    expected = [-np.asarray(MEAN) / STD, (1 - np.asarray(MEAN)) / STD]
    np.testing.assert_allclose(normalized(images)[:, 0, 0], expected, rtol=1e-6)
