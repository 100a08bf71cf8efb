"""The colours that networks trained on ImageNet expect."""

import jax
import jax.numpy as jnp

MEAN = (0.485, 0.456, 0.406)  # of R, G, B in [0, 1]
STD = (0.229, 0.224, 0.225)


def normalized(images: jax.Array) -> jax.Array:
    """[B, H, W, 3] in [-1, 1] -> mean 0 and standard deviation 1 over ImageNet, per colour."""
    mean, std = (jnp.asarray(colour, jnp.float32)[None, None, None] for colour in (MEAN, STD))
    return ((images.astype(jnp.float32) + 1) / 2 - mean) / std
