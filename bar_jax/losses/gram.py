"""The Gram loss: which features of VGG16 occur together, anywhere (Gatys et al. 2016)."""

import jax
import jax.numpy as jnp

from bar_jax.losses.imagenet import normalized
from bar_jax.nn.resize import resize
from bar_jax.nn.vgg import VGG16


def gram(
    net: VGG16, params: dict, images: jax.Array, reconstructions: jax.Array, size: int = 224
) -> jax.Array:
    """Mean squared difference of Gram matrices of each example, summed over VGG16's 31 layers.

    Args:
      params: of the network.
      images, reconstructions: [B, H, W, 3] in [-1, 1]. Gradients reach the latter alone.
      size: what both are resized to (bilinear).

    Returns:
      [B] float32.
    """

    def matrices(images):
        stages = net.apply({"params": params}, normalized(resize(images, size, "bilinear")))
        return [[gram_matrix(features) for features in stage] for stage in stages]

    originals = jax.lax.stop_gradient(matrices(images))
    errors = jax.tree.map(
        lambda x, y: jnp.mean(jnp.square(x - y), axis=(1, 2)), originals, matrices(reconstructions)
    )
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
