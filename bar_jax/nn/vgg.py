"""The convolutions of VGG16 (Simonyan & Zisserman 2015), for LPIPS and for the Gram loss."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bar_jax.nn.linear import named

CONVOLUTIONS = (2, 2, 3, 3, 3)  # of each stage


class VGG16(nn.Module):
    """Five stages of 3x3 convolutions and ReLUs, each ended by a 2x2 max pooling.

    Attributes:
      channels: of each stage.
    """

    channels: tuple[int, ...] = (64, 128, 256, 512, 512)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> list[list[jax.Array]]:
        """Normalised images [B, H, W, 3] -> the features of every stage.

        A stage is a list: the outputs of its convolutions after their ReLU, [B, h, w, C], then
        the pooled one.
        """
        x = x.astype(self.dtype)
        stages = []
        for stage, (channels, depth) in enumerate(zip(self.channels, CONVOLUTIONS, strict=True)):
            features = []
            for layer in range(depth):
                x = nn.Conv(
                    channels,
                    (3, 3),
                    dtype=self.dtype,
                    kernel_init=named(nn.initializers.he_normal(), None, None, None, "embed"),
                    bias_init=named(nn.initializers.zeros, "embed"),
                    name=conv_name(stage, layer),
                )(x)
                x = nn.relu(x)
                features.append(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
            stages.append([*features, x])
        return stages


def conv_name(stage: int, layer: int) -> str:
    """The name of a convolution's parameters, counted from 1 as the paper does: conv3_1."""
    return f"conv{stage + 1}_{layer + 1}"
