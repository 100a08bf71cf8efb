"""The Gram loss: which features of VGG16 occur together, wherever they are (Gatys et al. 2016)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def gram(
    features: Sequence[Sequence[jax.Array]], others: Sequence[Sequence[jax.Array]]
) -> jax.Array:
    """Mean squared difference of Gram matrices of each example, summed over VGG16's 31 layers.

    Args:
      features, others: the two of `perceptual.vgg_pair`, at 224 px.

    Returns:
      [B] float32.
    """

    def error(x, y):
        return jnp.mean(jnp.square(gram_matrix(x) - gram_matrix(y)), axis=(1, 2))

    errors = jax.tree.map(error, list(features), list(others))
    # The published loss also takes convolutions before their ReLU, but that ReLU works in place:
    # both layers are the same features.
    return sum(2 * sum(stage[:-1]) + stage[-1] for stage in errors)


def gram_matrix(features: jax.Array) -> jax.Array:
    """F^T F / (h w C): [B, h, w, C] -> [B, C, C] float32."""
    _, h, w, c = features.shape
    products = jnp.einsum(
        "bhwc,bhwd->bcd",
        features,
        features,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return products / (h * w * c)
