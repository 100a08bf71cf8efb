"""The convolutions of VGG16 (Simonyan & Zisserman 2015), for LPIPS and for the Gram loss."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bar_jax.nn.linear import named
from bar_jax.runtime.mesh import constrain_batch

CONVOLUTIONS = (2, 2, 3, 3, 3)  # of each stage


class Conv3x3(nn.Module):
    """A 3x3 convolution that keeps height and width."""

    channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, h, w, channels]."""
        kernel = self.param(
            "kernel",
            named(nn.initializers.he_normal(), None, None, None, "embed"),
            (3, 3, x.shape[-1], self.channels),
        ).astype(self.dtype)
        bias = self.param("bias", named(nn.initializers.zeros, "embed"), (self.channels,))
        if min(x.shape[1:3]) < 3:
            x = _shifted_products(x, kernel)
        else:
            dimensions = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=dimensions
            )
        return x + bias.astype(self.dtype)[None, None, None]


def _shifted_products(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same convolution, a matrix product for each of its nine places.

    XLA's convolution on CPU takes 80 times as long where the image is smaller than the kernel: the
    last stage of 32 px images.
    """
    _, h, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(x[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(3) for j in range(3))


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
        x = constrain_batch(x.astype(self.dtype))
        stages = []
        for stage, (channels, depth) in enumerate(zip(self.channels, CONVOLUTIONS, strict=True)):
            features = []
            for layer in range(depth):
                x = nn.relu(Conv3x3(channels, self.dtype, name=conv_name(stage, layer))(x))
                features.append(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
            x = constrain_batch(x)
            stages.append([*features, x])
        return stages


def conv_name(stage: int, layer: int) -> str:
    """The name of a convolution's parameters, counted from 1 as VGG's paper does: conv3_1."""
    return f"conv{stage + 1}_{layer + 1}"
