"""KL-16: images to tokens of real numbers and back (Rombach et al. 2022, Li et al. 2024).

The autoencoder of latent diffusion with stride 16 and 16 channels. It encodes an image to a normal
distribution for each token; a sample of it, times `scale`, is what generators model.
"""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from ml_collections import ConfigDict

from bar_jax.nn.attention import attend
from bar_jax.nn.linear import linear, named
from bar_jax.runtime.arguments import check_numbers
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.mesh import constrain_batch
from bar_jax.tokenizers.kind import TokenizerKind

GROUPS, NORM_EPS = 32, 1e-6
LOG_VARIANCE = (-30.0, 20.0)  # what log-variances are clamped to
NOMINAL_SIZE = 256  # px; where attention stands is said for images of this size


def attention_levels(multipliers: tuple[int, ...], resolution: int) -> tuple[int, ...]:
    """The encoder's levels where images of 256 px have become `resolution` px.

    Attention stays at these levels for images of any other size (published behaviour).
    """
    return tuple(i for i in range(len(multipliers)) if NOMINAL_SIZE // 2**i == resolution)


def posterior(moments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Moments [..., 2 c] -> mean and log-variance, [..., c] each, the latter clamped."""
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return mean, jnp.clip(log_variance, *LOG_VARIANCE)


def sample_posterior(moments: jax.Array, noise: jax.Array) -> jax.Array:
    """Moments [..., 2 c] and standard normal noise [..., c] -> a sample, [..., c]."""
    mean, log_variance = posterior(moments)
    return mean + jnp.exp(0.5 * log_variance) * noise


def kl_divergence(moments: jax.Array) -> jax.Array:
    """Moments [B, N, 2 c] -> KL to the standard normal, summed over an image, [B], in nats."""
    mean, log_variance = posterior(moments)
    terms = jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance
    return 0.5 * jnp.sum(terms, axis=(1, 2))


class KLVAE(nn.Module):
    """Convolutional encoder and decoder around a normal distribution for each token.

    Images are RGB in [-1, 1], [B, H, W, 3] with H = W = image_size. What is cached of them are the
    moments [B, N, 2 c] (mean | log-variance), what generators model are samples x [B, N, c]; tokens
    are in raster order.

    Attributes:
      width: channels of the first level, a multiple of 32.
      multipliers: channels of each level as multiples of `width`; between levels the size halves.
      blocks: residual blocks of each level of the encoder; the decoder has one more.
      channels: c, of a token.
      attention_levels: levels of the encoder with attention after each block. The middle of both
        halves has it, too; the levels of the decoder never do.
      scale: what samples are multiplied by, so that their variance is about 1.
    """

    image_size: int
    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    channels: int = 16
    attention_levels: tuple[int, ...] = (4,)
    scale: float = 0.2325
    dtype: jnp.dtype = jnp.float32

    @property
    def stride(self) -> int:
        """Side of the square of pixels that becomes one token."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return (self.image_size // self.stride,) * 2

    def setup(self):
        widths = tuple(self.width * multiplier for multiplier in self.multipliers)
        self.encoder = Encoder(
            self.width, widths, self.blocks, 2 * self.channels, self.attention_levels, self.dtype
        )
        self.decoder = Decoder(widths, self.blocks, self.dtype)
        # What meets a pixel or a token is float32, here and in both halves.
        self.to_moments = linear(2 * self.channels, (None, None))
        self.from_latents = linear(self.channels, (None, None))

    def encode(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] -> moments [B, N, 2 c] float32, the log-variance not clamped."""
        check_numbers("images", images, "B", self.image_size, self.image_size, 3)
        return rearrange(self.to_moments(self.encoder(images)), "b h w c -> b (h w) c")

    def decode(self, x: jax.Array) -> jax.Array:
        """Scaled samples [B, N, c] -> images [B, H, W, 3] float32, near [-1, 1], not clipped."""
        rows, columns = self.grid
        check_numbers("x", x, "B", rows * columns, self.channels)
        z = rearrange(x, "b (h w) c -> b h w c", h=rows, w=columns)
        return self.decoder(self.from_latents(z / self.scale))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] -> those that the posterior's means are decoded to."""
        return self.decode(self.latents(self.encode(images)))

    @nn.nowrap
    def latents(self, codes: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """What generators model; needs no parameters.

        Args:
          codes: moments [B, N, 2 c].
          keys: [B], which the noise of each example is drawn from; None: no noise, the means.

        Returns:
          Samples of the posterior times `scale`, [B, N, c] float32.
        """
        shape = codes.shape[1], codes.shape[2] // 2
        if keys is None:
            return posterior(codes)[0] * self.scale
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        return sample_posterior(codes, noise) * self.scale


class Encoder(nn.Module):
    """Images [B, H, W, 3] -> [B, h, w, outputs] float32.

    Attributes:
      inner: channels after the first convolution.
      widths: channels of each level, the first at the full size.
      blocks, attention_levels: see `KLVAE`.
    """

    inner: int
    widths: tuple[int, ...]
    blocks: int
    outputs: int
    attention_levels: tuple[int, ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """See the class."""
        x = _conv(self.inner, self.dtype, "conv_in")(x)
        for level, width in enumerate(self.widths):
            if level:
                # Padded on the right and at the bottom alone: the published convolution's places.
                places = {"strides": (2, 2), "padding": ((0, 1), (0, 1))}
                x = _conv(x.shape[-1], self.dtype, f"down{level}", **places)(x)
            for block in range(self.blocks):
                x = ResidualBlock(width, self.dtype, name=f"level{level}_block{block}")(x)
                if level in self.attention_levels:
                    x = Attention(self.dtype, name=f"level{level}_attention{block}")(x)
        return _finish(_middle(x, self.dtype), self.outputs, self.dtype)


class Decoder(nn.Module):
    """[B, h, w, c] -> images [B, H, W, 3] float32.

    Attributes:
      widths: channels of each level, the first at the full size, which comes last.
      blocks: see `KLVAE`.
    """

    widths: tuple[int, ...]
    blocks: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """See the class."""
        x = _middle(_conv(self.widths[-1], self.dtype, "conv_in")(z), self.dtype)
        for level in reversed(range(len(self.widths))):
            for block in range(self.blocks + 1):
                name = f"level{level}_block{block}"
                x = ResidualBlock(self.widths[level], self.dtype, name=name)(x)
            if level:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = _conv(x.shape[-1], self.dtype, f"up{level}")(x)
        return _finish(x, 3, self.dtype)


class ResidualBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))); a 1x1 convolution of x where widths differ."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, h, w, width]."""
        x = constrain_batch(x)
        h = nn.swish(_norm(self.dtype, "norm1")(x))
        h = _conv(self.width, self.dtype, "conv1")(h)
        h = nn.swish(_norm(self.dtype, "norm2")(h))
        h = _conv(self.width, self.dtype, "conv2")(h)
        if x.shape[-1] != self.width:
            x = linear(self.width, (None, "embed"), dtype=self.dtype, name="shortcut")(x)
        return x + h


class Attention(nn.Module):
    """x + attention of one head between all places of an image."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> the same."""
        channels = x.shape[-1]
        rows = rearrange(_norm(self.dtype, "norm")(x), "b h w c -> b (h w) 1 c")
        dense = lambda name: linear(channels, ("embed", None), dtype=self.dtype, name=name)
        out = attend(*(dense(name)(rows) for name in ("query", "key", "value")))
        return x + dense("out")(out).reshape(x.shape)


def _conv(channels, dtype, name, axis="embed", **places) -> nn.Conv:
    """A 3x3 convolution; without `places` it keeps height and width."""
    return nn.Conv(
        channels,
        (3, 3),
        dtype=dtype,
        kernel_init=named(nn.initializers.lecun_uniform(), None, None, None, axis),
        bias_init=named(nn.initializers.zeros, axis),
        name=name,
        **places,
    )


def _norm(dtype, name) -> nn.GroupNorm:
    # Fast variance, E[x^2] - E[x]^2, loses digits where the mean is large.
    return nn.GroupNorm(GROUPS, epsilon=NORM_EPS, dtype=dtype, use_fast_variance=False, name=name)


def _middle(x, dtype) -> jax.Array:
    """The blocks between the levels and the tokens; for a compact method."""
    x = ResidualBlock(x.shape[-1], dtype, name="middle_block0")(x)
    x = Attention(dtype, name="middle_attention")(x)
    return ResidualBlock(x.shape[-1], dtype, name="middle_block1")(x)


def _finish(x, outputs, dtype) -> jax.Array:
    """The last norm and convolution; for a compact method."""
    x = nn.swish(_norm(dtype, "norm_out")(x))
    return _conv(outputs, jnp.float32, "conv_out", axis=None)(x)


def _make(config: ConfigDict, remat: bool) -> KLVAE:
    del remat  # it is not trained here
    sizes = config.model.tokenizer.kl
    return KLVAE(
        image_size=config.data.image_size,
        width=sizes.width,
        multipliers=tuple(sizes.multipliers),
        blocks=sizes.blocks,
        channels=sizes.channels,
        attention_levels=attention_levels(sizes.multipliers, sizes.attention),
        scale=sizes.scale,
        dtype=jnp.dtype(config.dtype),
    )


def _width(config: ConfigDict) -> int:
    return config.model.tokenizer.kl.channels


def _check(config: ConfigDict) -> None:
    sizes = config.model.tokenizer.kl
    if sizes.width % GROUPS:
        expected = f"a multiple of {GROUPS}, the groups of its norms"
        raise InputError("model.tokenizer.kl.width", f"{sizes.width}", expected)
    multipliers = tuple(sizes.multipliers)
    if not multipliers or not all(type(m) is int and m > 0 for m in multipliers):
        expected = "positive integers, one for each level"
        raise InputError("model.tokenizer.kl.multipliers", f"{multipliers}", expected)
    stride = 2 ** (len(multipliers) - 1)
    if config.model.tokenizer.patch_size != stride:
        expected = f"{stride}: the {len(multipliers)} model.tokenizer.kl.multipliers halve that far"
        found = f"{config.model.tokenizer.patch_size}"
        raise InputError("model.tokenizer.patch_size", found, expected)


def _count_parameters(config: ConfigDict, params: Mapping) -> dict[str, int]:
    del config
    count = lambda tree: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    encoding = sum(count(params[part]) for part in ("encoder", "to_moments"))
    return {
        "tokenizer_trainable": 0,
        "tokenizer_total": count(params),
        "tokenizer_encoding": encoding,
        "tokenizer_decoding": count(params) - encoding,
    }


KIND = TokenizerKind(
    make=_make,
    makes_bits=False,
    width=_width,
    cached_as=lambda config: ("float32", 2 * _width(config)),  # mean and log-variance
    untrained="the weights of kl_vae are published, job=import_weights reads them",
    decoded="posterior mean",
    fields=("kl.",),
    count_parameters=_count_parameters,
    check=_check,
)
