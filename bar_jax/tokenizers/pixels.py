"""Pixels as tokens: patches as they are (basis paper, section 4.3)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bar_jax.nn.vit import patchify, unpatchify
from bar_jax.runtime.arguments import check_numbers
from bar_jax.runtime.errors import InputError
from bar_jax.tokenizers.kind import TokenizerKind


class Pixels(nn.Module):
    """Patches of an image, each a token of 3 p^2 numbers; there are no parameters.

    Images are RGB in [-1, 1], [B, H, W, 3] with H = W = image_size; tokens are in raster order,
    a token is (row, column, channel).
    """

    image_size: int
    patch_size: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return (self.image_size // self.patch_size,) * 2

    def encode(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] -> values of 8 bits, [B, N, 3 p^2] uint8."""
        check_numbers("images", images, "B", self.image_size, self.image_size, 3)
        values = jnp.clip(jnp.round((images + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
        return patchify(values, self.patch_size)

    def decode(self, x: jax.Array) -> jax.Array:
        """What generators model, [B, N, 3 p^2] -> images [B, H, W, 3] float32, not clipped."""
        rows, columns = self.grid
        check_numbers("x", x, "B", rows * columns, 3 * self.patch_size**2)
        return unpatchify(x.astype(jnp.float32), self.grid, self.patch_size)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] -> the same, rounded to 8 bits."""
        return self.decode(self.latents(self.encode(images)))

    @nn.nowrap
    def latents(self, codes: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Values [B, N, 3 p^2] uint8 -> what generators model, in [-1, 1] float32."""
        del keys  # nothing is random
        return codes.astype(jnp.float32) / 127.5 - 1.0


def _make(config: ConfigDict, remat: bool) -> Pixels:
    del remat  # there is nothing to train
    return Pixels(config.data.image_size, config.model.tokenizer.patch_size)


def _width(config: ConfigDict) -> int:
    return 3 * config.model.tokenizer.patch_size**2


def _check(config: ConfigDict) -> None:
    if config.data.source == "tokens":
        expected = "bar_fsq | kl_vae, whose tokens were published; or a data.source of images"
        raise InputError("model.tokenizer.kind", "'pixels' with data.source=tokens", expected)


KIND = TokenizerKind(
    make=_make,
    makes_bits=False,
    width=_width,
    cached_as=lambda config: ("uint8", _width(config)),
    untrained="patches have nothing to train",
    has_parameters=False,
    check=_check,
)
