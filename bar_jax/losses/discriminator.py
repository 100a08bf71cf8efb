"""The tokenizer's discriminator: heads on a frozen DINO (projected GAN, Sauer et al. 2021).

The frozen ViT-S/8 (Caron et al. 2021) gives features at five depths; at each of them a small
network of 1-D convolutions over the patches says for every patch whether it is real. Its weights
are divided by their largest singular value (Miyato et al. 2018), which one power iteration per
training forward keeps up to date. That iteration does not depend on the images: it is a function
of its own, `power_iteration`, and its vectors are constants of a forward.
"""

import math
from typing import NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from bar_jax.losses.reconstruction import to_8_bits
from bar_jax.nn.imagenet import normalized
from bar_jax.nn.linear import linear, named, uniform
from bar_jax.nn.resize import resize
from bar_jax.nn.vit import ViT, patchify

CONVOLUTIONS = ("first", "second", "last")  # of a head, all of a spectral norm
CROP_FRACTION = 0.5  # of training forwards with larger images: those that take a crop
NORM_EPS = 1e-6
LEAK = 0.2
UNIT_EPS = 1e-12
HIGHEST = jax.lax.Precision.HIGHEST


class DINO(nn.Module):
    """The frozen backbone: features of every patch, the class token's added to each.

    Attributes:
      width, depth, heads, mlp_width, patch_size: sizes of the ViT.
      stored_size: side of the images that there are positions for; for others these are resized
        (bilinear, antialiased).
      keep: depths of the features: -1 goes into the first block, 2 comes out of the third.
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_width: int = 1536
    patch_size: int = 8
    stored_size: int = 224
    keep: tuple[int, ...] = (-1, 2, 5, 8, 11)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] in [-1, 1] -> features [K, B, N, width] of the patches."""
        patches = patchify(normalized(images), self.patch_size)
        embed = linear(self.width, (None, "embed"), dtype=self.dtype, name="patch_embedding")
        grid = images.shape[1] // self.patch_size, images.shape[2] // self.patch_size
        _, features = ViT(
            self.width,
            self.depth,
            self.heads,
            self.mlp_width,
            position_grid=(self.stored_size // self.patch_size,) * 2,
            class_token=True,
            final_norm=False,
            keep=self.keep,
            gelu="tanh",
            dtype=self.dtype,
            name="vit",
        )(embed(patches), grid)
        return features[:, :, 1:] + features[:, :, :1]


class Head(nn.Module):
    """The network at one depth: [B, N, C] -> logits [B, N] float32."""

    kernel_size: int
    virtual_batch: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, carry: None, x: jax.Array) -> tuple[None, jax.Array]:
        """One layer of the scan over depths: nothing is carried, logits are stacked."""
        x = self._block(x.astype(self.dtype), 1, "first")
        x = (x + self._block(x, self.kernel_size, "second")) / math.sqrt(2)
        logits = self._conv(x, 1, 1, "last")
        return None, logits[..., 0].astype(jnp.float32)

    def _block(self, x: jax.Array, kernel_size: int, name: str) -> jax.Array:
        channels = x.shape[-1]
        x = self._conv(x, channels, kernel_size, name)
        scale = self.param(f"{name}_scale", nn.initializers.ones, (channels,))
        bias = self.param(f"{name}_bias", nn.initializers.zeros, (channels,))
        x = batch_norm_local(x, scale, bias, self.virtual_batch)
        return nn.leaky_relu(x, LEAK).astype(self.dtype)

    def _conv(self, x: jax.Array, channels: int, kernel_size: int, name: str) -> jax.Array:
        return CircularConv(channels, kernel_size, self.dtype, name=name)(x)


class CircularConv(nn.Module):
    """A 1-D convolution whose ends meet: [B, N, in] -> [B, N, channels]; kernel_size is odd."""

    channels: int
    kernel_size: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, x.shape[-1], self.channels)
        start = uniform((shape[0] * shape[1]) ** -0.5)
        kernel = self.param("kernel", named(start, None, "embed", None), shape).astype(self.dtype)
        bias = self.param("bias", start, shape[2:]).astype(self.dtype)
        # One product, of windows that are not kept for the backward pass: in a loop, XLA's
        # convolutions ran 100 times slower on CPU.
        return jax.checkpoint(_convolve)(x, kernel) + bias[None, None]


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, N, in] and [kernel, in, out] -> [B, N, out]."""
    size, side = kernel.shape[0], kernel.shape[0] // 2
    x = jnp.pad(x, ((0, 0), (side, side), (0, 0)), mode="wrap")
    windows = [x[:, i : x.shape[1] - size + 1 + i] for i in range(size)]
    return jnp.concatenate(windows, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


class Discriminator(nn.Module):
    """The backbone and a head for each depth; the sizes by default are the published ones.

    Its parameters are `backbone`, frozen, and `heads`, trained. Of the latter the module takes
    kernels that are divided by their spectral norm already: call it through `logits`.

    Attributes:
      width .. keep: see `DINO`.
      kernel_size: of the residual convolution over the patches.
      virtual_batch: most examples that are normalised together.
    """

    width: int = DINO.width
    depth: int = DINO.depth
    heads: int = DINO.heads
    mlp_width: int = DINO.mlp_width
    patch_size: int = DINO.patch_size
    stored_size: int = DINO.stored_size
    keep: tuple[int, ...] = DINO.keep
    kernel_size: int = 9
    virtual_batch: int = 8
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] in [-1, 1] -> logits [B, K * N] float32, depth by depth."""
        features = DINO(
            self.width,
            self.depth,
            self.heads,
            self.mlp_width,
            self.patch_size,
            self.stored_size,
            self.keep,
            self.dtype,
            name="backbone",
        )(images)
        heads = nn.scan(
            Head,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=len(self.keep),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(self.kernel_size, self.virtual_batch, self.dtype, name="heads")
        _, out = heads(None, features)
        return einops.rearrange(out, "k b n -> b (k n)")


def batch_norm_local(
    x: jax.Array, scale: jax.Array, bias: jax.Array, virtual_batch: int = 8
) -> jax.Array:
    """Normalises every channel over groups of consecutive examples and their places.

    The batch is cut into ceil(B / virtual_batch) equal groups. There are no running statistics.

    Args:
      x: [B, N, C].
      scale, bias: [C].

    Returns:
      [B, N, C] float32.

    Raises:
      ValueError: if the groups do not divide the batch.
    """
    groups = math.ceil(x.shape[0] / virtual_batch)
    if x.shape[0] % groups:
        raise ValueError(f"a batch of {x.shape[0]} is not {groups} groups of equal size")
    x = einops.rearrange(x.astype(jnp.float32), "(g b) n c -> g b n c", g=groups)
    mean = jnp.mean(x, axis=(1, 2), keepdims=True)
    variance = jnp.var(x, axis=(1, 2), keepdims=True)
    x = (x - mean) * jax.lax.rsqrt(variance + NORM_EPS)
    x = x * scale[None, None, None] + bias[None, None, None]
    return einops.rearrange(x, "g b n c -> (g b) n c")


def init_vectors(key: jax.Array, params: dict) -> dict:
    """Random unit vectors u and v for the spectral norm of every convolution of the heads.

    Args:
      params: of the heads; kernels are [K, kernel, in, out].

    Returns:
      convolution -> {u: [K, out], v: [K, kernel, in]}.
    """
    vectors = {}
    for name in CONVOLUTIONS:
        k, width, inputs, outputs = params[name]["kernel"].shape
        key, key_u, key_v = jax.random.split(key, 3)
        vectors[name] = {
            "u": _unit(jax.random.normal(key_u, (k, outputs))),
            "v": _unit(jax.random.normal(key_v, (k, width, inputs))),
        }
    return vectors


def power_iteration(params: dict, vectors: dict) -> dict:
    """One step of every u and v towards the largest singular value; no gradient.

    A training forward takes one, in the discriminator's steps and in the generator's.

    Args:
      params: of the heads.
      vectors: see `init_vectors`.
    """
    stepped = {}
    for name, pair in vectors.items():
        kernel = jax.lax.stop_gradient(params[name]["kernel"].astype(jnp.float32))
        v = _unit(jnp.einsum("lkio,lo->lki", kernel, pair["u"], precision=HIGHEST))
        u = _unit(jnp.einsum("lkio,lki->lo", kernel, v, precision=HIGHEST))
        stepped[name] = {"u": u, "v": v}
    return stepped


def spectral_norms(params: dict, vectors: dict) -> dict:
    """Largest singular values as the vectors see them: convolution -> u^T W v, [K]."""
    return {
        name: jnp.einsum(
            "lkio,lki,lo->l", params[name]["kernel"], pair["v"], pair["u"], precision=HIGHEST
        )
        for name, pair in jax.lax.stop_gradient(vectors).items()
    }


def logits(
    net: Discriminator, params: dict, vectors: dict, backbone: dict, images: jax.Array
) -> jax.Array:
    """How real every patch looks at every depth.

    Args:
      params: of the heads.
      vectors: of their spectral norms; constants here (see `power_iteration`).
      backbone: parameters of the frozen network.
      images: [B, H, W, 3] in [-1, 1], of the size that the backbone works at (see `prepare`).

    Returns:
      [B, K * N] float32.

    Raises:
      ValueError: if the groups of `batch_norm_local` do not divide the batch.
    """
    heads = dict(params)
    for name, norm in spectral_norms(params, vectors).items():
        kernel = params[name]["kernel"] / norm[:, None, None, None]
        heads[name] = {**params[name], "kernel": kernel}
    return net.apply({"params": {"backbone": backbone, "heads": heads}}, images)


class Crop(NamedTuple):
    """What is taken of images that are too large: a crop, or all of them, made smaller.

    Attributes:
      taken: bool [], whether it is a crop.
      top, left: int32 [], where it starts.
    """

    taken: jax.Array
    top: jax.Array
    left: jax.Array


def draw_crop(key: jax.Array, shape: tuple[int, int], size: int = 224) -> Crop:
    """One crop for a whole batch: with probability 1/2, anywhere.

    Args:
      shape: height and width of the images.
      size: side of the crop.
    """
    keys = jax.random.split(key, 3)
    most = [max(side - size, 0) + 1 for side in shape]
    offsets = [jax.random.randint(k, (), 0, n) for k, n in zip(keys[1:], most, strict=True)]
    return Crop(jax.random.bernoulli(keys[0], CROP_FRACTION), *offsets)


def prepare(images: jax.Array, crop: Crop, size: int = 224) -> jax.Array:
    """Images of any size as the backbone takes them: [B, H, W, 3] -> [B, size, size, 3].

    Larger ones are cropped or shrunk (area), as `crop` says; smaller ones are enlarged (bicubic);
    those of the right size stay as they are.
    """
    batch, height, width, colours = images.shape
    if (height, width) == (size, size):
        return images.astype(jnp.float32)
    if min(height, width) < size:
        return resize(images, size, "bicubic")
    start = (0, crop.top, crop.left, 0)
    shape = (batch, size, size, colours)
    return jax.lax.cond(
        crop.taken,
        lambda: jax.lax.dynamic_slice(images.astype(jnp.float32), start, shape),
        lambda: resize(images, size, "area"),
    )


def as_stored(reconstructions: jax.Array) -> jax.Array:
    """Reconstructions as the discriminator's own steps see them: of 8 bits, without gradient."""
    return 2 * to_8_bits(jax.lax.stop_gradient(reconstructions)) - 1


def hinge(real: jax.Array, fake: jax.Array) -> jax.Array:
    """The discriminator's loss of each pair of examples.

    Args:
      real, fake: logits [B, L] of images and of reconstructions.

    Returns:
      [B] float32: half the sum of the means of max(0, 1 - real) and max(0, 1 + fake).
    """
    return 0.5 * (jnp.mean(nn.relu(1 - real), -1) + jnp.mean(nn.relu(1 + fake), -1))


def generator_loss(fake: jax.Array) -> jax.Array:
    """The tokenizer's loss of each example: minus its mean logit, [B, L] -> [B] float32."""
    return -jnp.mean(fake, axis=-1)


def _unit(x: jax.Array) -> jax.Array:
    """Arrays [K, ...], each scaled to length 1."""
    axes = tuple(range(1, x.ndim))
    length = jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))
    return x / jnp.maximum(length, UNIT_EPS)
