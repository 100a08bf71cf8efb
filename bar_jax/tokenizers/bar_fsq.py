"""BAR-FSQ: images to tokens of k bits and back (masked-bit paper, sections 3.3 and 4.1)."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from bar_jax.nn.linear import linear, named
from bar_jax.nn.vit import ViT, patchify, unpatchify
from bar_jax.tokenizers.fsq import Quantizer, bits_to_codes, codes_to_bits


class BarFSQ(nn.Module):
    """ViT encoder, binary FSQ, ViT decoder.

    Images are RGB in [-1, 1], [B, H, W, 3] with H = W = image_size; tokens are bits {0, 1},
    [B, N, k] uint8 with N = (image_size / patch_size)^2 in raster order.

    Attributes:
      bits: k, bits of a token.
      encoder, decoder: sizes (width, depth, heads, mlp_width) of the two transformers.
      centered_bits: see `Quantizer.centered`.
      remat: recompute activations of the transformers' blocks in the backward pass.
    """

    image_size: int
    patch_size: int
    bits: int
    encoder: dict[str, int]
    decoder: dict[str, int]
    centered_bits: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return (self.image_size // self.patch_size,) * 2

    def setup(self):
        width = self.decoder["width"]
        self.patch_embedding = linear(self.encoder["width"], (None, "embed"), dtype=self.dtype)
        # SigLIP2's vision tower: tanh-GELU, eps 1e-6, no class token.
        self.encoder_vit = ViT(
            **self.encoder, gelu_approximate=True, remat=self.remat, dtype=self.dtype
        )
        self.quantizer = Quantizer(
            self.bits, inputs=self.encoder["width"], outputs=width, centered=self.centered_bits
        )
        self.decoder_vit = ViT(
            **self.decoder,
            class_token=True,
            pre_norm=True,
            norm_eps=1e-5,
            table_init=nn.initializers.normal(width**-0.5),
            remat=self.remat,
            dtype=self.dtype,
        )
        self.to_pixels = linear(self.patch_size**2 * 3, ("embed", None), dtype=self.dtype)
        # Smooths the seams between patches; in float32, like everything that meets a pixel.
        self.pixel_conv = nn.Conv(
            3, (3, 3), kernel_init=named(nn.initializers.normal(0.02), None, None, None, None)
        )

    def quantized(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] -> codes {-1, +1} [B, N, k] with a straight-through gradient."""
        chex.assert_shape(images, (None, self.image_size, self.image_size, 3))
        patches = patchify(images, self.patch_size)
        return self.quantizer(self.encoder_vit(self.patch_embedding(patches), self.grid))

    def render(self, codes: jax.Array) -> jax.Array:
        """Codes [B, N, k] -> images [B, H, W, 3] float32, near [-1, 1] but not clipped."""
        rows, columns = self.grid
        chex.assert_shape(codes, (None, rows * columns, self.bits))
        tokens = self.decoder_vit(self.quantizer.expand(codes), self.grid)[:, 1:]
        patches = self.to_pixels(tokens).astype(jnp.float32)
        return self.pixel_conv(unpatchify(patches, self.grid, self.patch_size))

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images -> reconstructions [B, H, W, 3] and codes {-1, +1} [B, N, k], for training."""
        codes = self.quantized(images)
        return self.render(codes), codes

    def encode(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] in [-1, 1] -> bits {0, 1} [B, N, k] uint8."""
        return codes_to_bits(self.quantized(images))

    def decode(self, bits: jax.Array) -> jax.Array:
        """Bits {0, 1} [B, N, k] -> images [B, H, W, 3] float32, near [-1, 1]."""
        return self.render(bits_to_codes(bits))
