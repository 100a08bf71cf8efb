"""Token shuffling: p x p neighbouring tokens of k bits as one token of k p^2 bits (Table 2d)."""

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
