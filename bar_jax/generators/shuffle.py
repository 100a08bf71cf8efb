"""p x p neighbouring tokens as one, which is p^2 times as large.

Of bits that is token shuffling (masked-bit paper, Table 2d), of real numbers the patches of xAR and
MAR; published code lays out the two in different orders.
"""

import jax
from einops import rearrange


def shuffle(bits: jax.Array, grid: tuple[int, int], patch_size: int) -> jax.Array:
    """[B, h w, k] -> [B, h w / p^2, p^2 k]; grid = (h, w) before. The bits are laid out (p p k)."""
    p = patch_size
    h, w = grid[0] // p, grid[1] // p
    return rearrange(bits, "b (h sh w sw) k -> b (h w) (sh sw k)", h=h, w=w, sh=p, sw=p)


def unshuffle(bits: jax.Array, grid: tuple[int, int], patch_size: int) -> jax.Array:
    """The inverse: [B, h w / p^2, p^2 k] -> [B, h w, k]; grid = (h, w) after."""
    p = patch_size
    h, w = grid[0] // p, grid[1] // p
    return rearrange(bits, "b (h w) (sh sw k) -> b (h sh w sw) k", h=h, w=w, sh=p, sw=p)


def to_patches(x: jax.Array, grid: tuple[int, int], patch_size: int) -> jax.Array:
    """[B, h w, c] -> [B, h w / p^2, c p^2]; grid = (h, w) before. Channels are laid out (c p p)."""
    p = patch_size
    h, w = grid[0] // p, grid[1] // p
    return rearrange(x, "b (h sh w sw) c -> b (h w) (c sh sw)", h=h, w=w, sh=p, sw=p)


def from_patches(x: jax.Array, grid: tuple[int, int], patch_size: int) -> jax.Array:
    """The inverse: [B, h w / p^2, c p^2] -> [B, h w, c]; grid = (h, w) after."""
    p = patch_size
    h, w = grid[0] // p, grid[1] // p
    return rearrange(x, "b (h w) (c sh sw) -> b (h sh w sw) c", h=h, w=w, sh=p, sw=p)
