"""Inception v3 as FID means it: the graph that TensorFlow published in December 2015.

It is not torchvision's Inception v3: average pools leave the padding out of their mean, the last
block pools by maximum, and there are 1008 classes (Szegedy et al. 2016; Heusel et al. 2017).
Batch normalisation is part of the convolutions' kernels and biases: a file's are folded in when it
is read (`bar_jax.pretrained.inception`).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bar_jax.nn.linear import named
from bar_jax.nn.resize import resize
from bar_jax.runtime.mesh import constrain_batch

SIZE = 299  # px a side of the images that the network was trained on
FEATURES = 2048
CLASSES = 1008
SPATIAL_CHANNELS = 7  # of sFID: 7 x 17 x 17 is about as many features as FID's 2048


class Inception(nn.Module):
    """The features that FID, sFID, KID, precision and recall, and the Inception Score are made of.

    Images of any size are resized as TensorFlow 1 did (`bilinear_tf1`), then scaled to
    (x - 128) / 128. All products are of whole float32 numbers, on every kind of device.
    """

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """Images [B, H, W, 3], uint8 or float in [0, 255] -> float32 features.

        Returns:
          `pool`: [B, 2048], the mean over the last block's 8x8 places ("pool_3:0").
          `spatial`: [B, 2023], sFID's: the first 7 channels of the 17x17 map "mixed_6/conv:0"
            (`Mixed_6d.branch1x1` in PyTorch's names), flattened as (row, column, channel).
          `logits`: [B, 1008], the Inception Score's: without the classifier's bias.
        """
        with jax.default_matmul_precision("highest"):
            x = resize(constrain_batch(images), SIZE, "bilinear_tf1")
            x = (x - 128) / 128
            x = _chain(
                x,
                ("Conv2d_1a_3x3", 32, 3, 2, "VALID"),
                ("Conv2d_2a_3x3", 32, 3, 1, "VALID"),
                ("Conv2d_2b_3x3", 64, 3),
            )
            x = _max_halved(x)
            x = _chain(x, ("Conv2d_3b_1x1", 80, 1), ("Conv2d_4a_3x3", 192, 3, 1, "VALID"))
            x = _max_halved(x)
            for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
                x = InceptionA(pooled, name=name)(x)
            x = InceptionB(name="Mixed_6a")(x)
            for name, inner in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160)):
                x = InceptionC(inner, name=name)(x)
            # The first branch of a block is the first in its output.
            spatial = x[..., :SPATIAL_CHANNELS].reshape(x.shape[0], -1)
            x = InceptionC(192, name="Mixed_6e")(x)
            x = InceptionD(name="Mixed_7a")(x)
            x = InceptionE(max_pooled=False, name="Mixed_7b")(x)
            x = InceptionE(max_pooled=True, name="Mixed_7c")(x)
            pool = jnp.mean(x, axis=(1, 2))
            kernel = self.param(
                "logits", named(nn.initializers.lecun_normal(), None, None), (FEATURES, CLASSES)
            )
            return {"pool": pool, "spatial": spatial, "logits": pool @ kernel}


class ConvReLU(nn.Module):
    """A convolution and a ReLU.

    Attributes:
      kernel_size: rows and columns, or both.
    """

    channels: int
    kernel_size: int | tuple[int, int]
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, h', w', channels]."""
        size = self.kernel_size
        convolution = nn.Conv(
            self.channels,
            (size, size) if isinstance(size, int) else size,
            strides=(self.stride, self.stride),
            padding=self.padding,
            kernel_init=named(nn.initializers.he_normal(), None, None, None, None),
            bias_init=named(nn.initializers.zeros, None),
            name="conv",
        )
        return nn.relu(convolution(x))


class InceptionA(nn.Module):
    """35x35: branches of 1x1, 5x5 and twice 3x3, and one that pools."""

    pooled: int  # channels of the last branch

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, 35, 35, C] -> [B, 35, 35, 224 + pooled]."""
        return _joined(
            _chain(x, ("branch1x1", 64, 1)),
            _chain(x, ("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
            _chain(
                x, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)
            ),
            _chain(_mean_3x3(x), ("branch_pool", self.pooled, 1)),
        )


class InceptionB(nn.Module):
    """35x35 to 17x17."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, 35, 35, C] -> [B, 17, 17, 480 + C]."""
        return _joined(
            _chain(x, ("branch3x3", 384, 3, 2, "VALID")),
            _chain(
                x,
                ("branch3x3dbl_1", 64, 1),
                ("branch3x3dbl_2", 96, 3),
                ("branch3x3dbl_3", 96, 3, 2, "VALID"),
            ),
            _max_halved(x),
        )


class InceptionC(nn.Module):
    """17x17: branches of 1x1, 7x7 and twice 7x7 (as rows, then columns), and one that pools."""

    inner: int  # channels inside the branches of 7x7

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, 17, 17, C] -> [B, 17, 17, 768]."""
        inner, row, column = self.inner, (1, 7), (7, 1)
        return _joined(
            _chain(x, ("branch1x1", 192, 1)),
            _chain(
                x,
                ("branch7x7_1", inner, 1),
                ("branch7x7_2", inner, row),
                ("branch7x7_3", 192, column),
            ),
            _chain(
                x,
                ("branch7x7dbl_1", inner, 1),
                ("branch7x7dbl_2", inner, column),
                ("branch7x7dbl_3", inner, row),
                ("branch7x7dbl_4", inner, column),
                ("branch7x7dbl_5", 192, row),
            ),
            _chain(_mean_3x3(x), ("branch_pool", 192, 1)),
        )


class InceptionD(nn.Module):
    """17x17 to 8x8."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, 17, 17, C] -> [B, 8, 8, 512 + C]."""
        return _joined(
            _chain(x, ("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2, "VALID")),
            _chain(
                x,
                ("branch7x7x3_1", 192, 1),
                ("branch7x7x3_2", 192, (1, 7)),
                ("branch7x7x3_3", 192, (7, 1)),
                ("branch7x7x3_4", 192, 3, 2, "VALID"),
            ),
            _max_halved(x),
        )


class InceptionE(nn.Module):
    """8x8: branches that end in a row and a column side by side."""

    max_pooled: bool  # the last branch pools by maximum, not by mean

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, 8, 8, C] -> [B, 8, 8, 2048]."""
        row, column = (1, 3), (3, 1)
        once = _chain(x, ("branch3x3_1", 384, 1))
        twice = _chain(x, ("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3))
        pooled = nn.max_pool(x, (3, 3), padding="SAME") if self.max_pooled else _mean_3x3(x)
        return _joined(
            _chain(x, ("branch1x1", 320, 1)),
            _chain(once, ("branch3x3_2a", 384, row)),
            _chain(once, ("branch3x3_2b", 384, column)),
            _chain(twice, ("branch3x3dbl_3a", 384, row)),
            _chain(twice, ("branch3x3dbl_3b", 384, column)),
            _chain(pooled, ("branch_pool", 192, 1)),
        )


def _chain(x: jax.Array, *layers: tuple) -> jax.Array:
    """Convolutions one after another, each a name and the arguments of `ConvReLU`."""
    for name, *arguments in layers:
        x = ConvReLU(*arguments, name=name)(x)
    return x


def _joined(*branches: jax.Array) -> jax.Array:
    return jnp.concatenate(branches, axis=-1)


def _max_halved(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), strides=(2, 2))


def _mean_3x3(x: jax.Array) -> jax.Array:
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
