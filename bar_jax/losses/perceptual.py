"""Distances between images as pretrained networks see them.

The original's features carry no gradient, so it goes through a network on its own: in one batch
with the reconstruction it would be carried through the backward pass as well.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from bar_jax.nn.convnext import ConvNeXt
from bar_jax.nn.imagenet import normalized
from bar_jax.nn.resize import resize
from bar_jax.nn.vgg import VGG16

UNIT_EPS = 1e-10


class LinearHeads(nn.Module):
    """What LPIPS learns: a weight for each channel of the last ReLU of VGG16's five stages."""

    channels: tuple[int, ...] = VGG16.channels

    @nn.compact
    def __call__(self, features: Sequence[jax.Array], others: Sequence[jax.Array]) -> jax.Array:
        """Two lists of features [B, h, w, C] -> [B] float32.

        The weighted squared difference of channels (scaled to length 1 at every place), averaged
        over places, summed over stages.
        """
        total = 0.0
        for i, (channels, x, y) in enumerate(zip(self.channels, features, others, strict=True)):
            weight = self.param(f"lin{i}", nn.initializers.uniform(2 / channels), (channels,))
            squared = jnp.square(_unit(x) - _unit(y))
            total += jnp.mean(jnp.sum(squared * weight[None, None, None], -1), axis=(1, 2))
        return total


def vgg_pair(
    net: VGG16, params: dict, images: jax.Array, reconstructions: jax.Array, size: int
) -> tuple[list[list[jax.Array]], list[list[jax.Array]]]:
    """VGG16's features of images and of their reconstructions, by stage (see `nn.vgg`).

    LPIPS's own normalisation is ImageNet's, so that LPIPS and the Gram loss can share them.

    Args:
      params: of the network.
      images, reconstructions: [B, H, W, 3] in [-1, 1]. Gradients reach the latter alone.
      size: what both are resized to (bilinear): 224 for the Gram loss, their own for LPIPS.
    """

    def features(images):
        return net.apply({"params": params}, normalized(resize(images, size, "bilinear")))

    return jax.lax.stop_gradient(features(images)), features(reconstructions)


def lpips(
    params: dict, features: Sequence[Sequence[jax.Array]], others: Sequence[Sequence[jax.Array]]
) -> jax.Array:
    """LPIPS (Zhang et al. 2018, VGG16, linear heads) of each example.

    Args:
      params: of `LinearHeads`.
      features, others: the two of `vgg_pair`, at the images' own size.

    Returns:
      [B] float32.
    """
    last = lambda stages: [stage[-2] for stage in stages]  # before the pooling
    channels = tuple(stage[-2].shape[-1] for stage in features)
    return LinearHeads(channels).apply({"params": params}, last(features), last(others))


def convnext_distance(
    net: ConvNeXt, params: dict, images: jax.Array, reconstructions: jax.Array, size: int = 224
) -> jax.Array:
    """Mean squared difference of ConvNeXt's logits of each example.

    Args:
      params: of the network.
      images, reconstructions: [B, H, W, 3] in [-1, 1]. Gradients reach the latter alone.
      size: what both are resized to (bicubic, antialiased).

    Returns:
      [B] float32.
    """
    original = jax.lax.stop_gradient(convnext_logits(net, params, images, size))
    error = convnext_logits(net, params, reconstructions, size) - original
    return jnp.mean(jnp.square(error), axis=-1)


def convnext_logits(net: ConvNeXt, params: dict, images: jax.Array, size: int = 224) -> jax.Array:
    """Logits [B, num_classes] float32 of images [B, H, W, 3] in [-1, 1], resized to `size`."""
    images = normalized(resize(images, size, "bicubic_antialiased"))
    return net.apply({"params": params}, images)


def _unit(x: jax.Array) -> jax.Array:
    """Channels [..., C] scaled to length 1, or 0 where all are 0; float32."""
    x = x.astype(jnp.float32)
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # The square root has no derivative at 0: one that is not taken must not be NaN either.
    some = squared > 0
    length = jnp.where(some, jnp.sqrt(jnp.where(some, squared, 1.0)), 0.0)
    return x / (length + UNIT_EPS)
