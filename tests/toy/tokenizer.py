"""A toy tokenizer: the bits of a patch are the signs of a linear map of its pixels."""

import flax.linen as nn
import jax

from bar_jax.nn.vit import patchify, unpatchify
from bar_jax.tokenizers.bar_fsq import Reconstruction
from bar_jax.tokenizers.fsq import bits_to_codes, codes_to_bits, quantize_centered
from bar_jax.tokenizers.kind import TokenizerKind


class Signs(nn.Module):
    """Images [B, H, W, 3] in [-1, 1] <-> bits [B, N, k] uint8 of the patches, in raster order."""

    image_size: int
    patch_size: int
    bits: int
    dtype = "float32"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return (self.image_size // self.patch_size,) * 2

    def setup(self):
        self.analysis = nn.Dense(self.bits)
        self.synthesis = nn.Dense(3 * self.patch_size**2)

    def __call__(self, images: jax.Array) -> Reconstruction:
        """What training compares with the images."""
        codes = quantize_centered(self.analysis(patchify(images, self.patch_size)))
        patches = self.synthesis(codes)
        return Reconstruction(unpatchify(patches, self.grid, self.patch_size), codes, None)

    def encode(self, images: jax.Array) -> jax.Array:
        """Images -> what is cached."""
        return codes_to_bits(self(images).codes)

    @nn.nowrap
    def latents(self, bits: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """What is cached -> what is modelled: bits are."""
        del keys
        return bits

    def decode(self, bits: jax.Array) -> jax.Array:
        """What is modelled -> images."""
        return unpatchify(self.synthesis(bits_to_codes(bits)), self.grid, self.patch_size)


def _make(config, remat: bool) -> Signs:
    del remat  # there is little to save
    tokenizer = config.model.tokenizer
    return Signs(config.data.image_size, tokenizer.patch_size, tokenizer.bits)


def _group(path) -> str:
    return "encoder" if path[0] == "analysis" else "decoder"


KIND = TokenizerKind(
    make=_make,
    makes_bits=True,
    width=lambda config: config.model.tokenizer.bits,
    cached_as=lambda config: ("bits", config.model.tokenizer.bits),
    fields=("bits",),
    group=_group,
)
