"""Normalised colours as frozen networks expect them: by default those trained on ImageNet."""

import jax
import jax.numpy as jnp

MEAN = (0.485, 0.456, 0.406)  # of R, G, B in [0, 1]
STD = (0.229, 0.224, 0.225)


def normalized(
    images: jax.Array, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD
) -> jax.Array:
    """[B, H, W, 3] in [-1, 1] -> mean 0 and standard deviation 1 over a data set, per colour.

    Args:
      mean, std: of the data set's colours in [0, 1].
    """
    mean, std = (jnp.asarray(colour, jnp.float32)[None, None, None] for colour in (mean, std))
    return ((images.astype(jnp.float32) + 1) / 2 - mean) / std
