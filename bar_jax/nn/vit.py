"""The Vision Transformer that every ViT of the project is made of (Dosovitskiy et al. 2021).

It works on tokens: what turns an image into tokens (a patch embedding) or tokens into an image
is its caller's.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from bar_jax.nn.attention import attend
from bar_jax.nn.linear import NORMAL_02, Init, linear, named
from bar_jax.nn.mlp import Gelu, GeluMLP
from bar_jax.nn.remat import rematerialised
from bar_jax.runtime.mesh import constrain_batch


class ViTBlock(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + MLP(norm(x)), either one scaled or not."""

    heads: int
    mlp_width: int
    gelu: Gelu
    norm_eps: float
    dtype: jnp.dtype
    layer_scale: bool = False
    causal: bool = False

    @nn.compact
    def __call__(
        self, carry: tuple[jax.Array, jax.Array | None], slot: jax.Array | None = None
    ) -> tuple[tuple[jax.Array, jax.Array | None], None]:
        """One layer of the scan.

        Args:
          carry: x [B, N, D], and the outputs kept so far [K, B, N, D] or None.
          slot: where to keep this layer's output; a later layer may overwrite it.

        Returns:
          The new carry, and what `nn.scan` stacks: nothing.
        """
        x, kept = carry
        width = x.shape[-1]
        x = constrain_batch(x)
        h = nn.LayerNorm(self.norm_eps, name="attention_norm")(x)
        h = linear(
            (3, self.heads, width // self.heads),
            ("embed", None, "heads", None),
            dtype=self.dtype,
            name="qkv",
        )(h)
        h = attend(h[:, :, 0], h[:, :, 1], h[:, :, 2], causal=self.causal)
        h = linear(width, ("heads", None, "embed"), inputs=2, dtype=self.dtype, name="out")(h)
        x += self._scaled(h, "attention_scale")
        h = nn.LayerNorm(self.norm_eps, name="mlp_norm")(x)
        h = GeluMLP(self.mlp_width, self.gelu, dtype=self.dtype, name="mlp")(h)
        x += self._scaled(h, "mlp_scale")
        if kept is not None:
            kept = jax.lax.dynamic_update_index_in_dim(kept, x, slot, 0)
        return (x, kept), None

    def _scaled(self, h: jax.Array, name: str) -> jax.Array:
        """h as it is, or times a learned factor for each channel."""
        if not self.layer_scale:
            return h
        scale = self.param(name, named(nn.initializers.ones, "embed"), h.shape[-1:])
        return scale[None, None] * h


class ViT(nn.Module):
    """Learned positions, an optional class token and norm in front, blocks, a final norm.

    Attributes:
      width, depth, heads, mlp_width: sizes of the transformer.
      position_grid: rows and columns that there are learned positions for, resized to the grid of
        the tokens (bilinear, antialiased: SigLIP2's NaFlex); None: those of the tokens.
      class_token: put a learned token in front, with a position of its own (kept in the output).
      pre_norm: LayerNorm before the first block.
      final_norm: LayerNorm after the last block.
      keep: layers, ascending, whose outputs are returned too: 0 is the first block, -1 what goes
        into it.
      gelu: the MLPs' nonlinearity: `exact` (DINOv2, the decoder), `tanh` (SigLIP2, the
        discriminator's DINO) or `quick` (CLIP).
      layer_scale: scale what every attention and MLP adds, per channel (DINOv2).
      causal: a token sees itself and those before it (CLIP's text).
      norm_eps: epsilon of every LayerNorm.
      table_init: initialiser of the class token and the positions.
      remat: keep of a block its input alone for the gradient, see `nn.remat`.
    """

    width: int
    depth: int
    heads: int
    mlp_width: int
    position_grid: tuple[int, int] | None = None
    class_token: bool = False
    pre_norm: bool = False
    final_norm: bool = True
    keep: tuple[int, ...] = ()
    gelu: Gelu = "exact"
    layer_scale: bool = False
    causal: bool = False
    norm_eps: float = 1e-6
    table_init: Init = NORMAL_02
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: jax.Array, grid: tuple[int, int]
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Tokens [B, rows * columns, width] in raster order -> features of the same shape.

        With the class token in front they are [B, 1 + rows * columns, width].

        Args:
          grid: rows and columns of the tokens.

        Returns:
          The features; where layers are kept, a pair with their outputs [K, B, N, width], which
          the final norm has not seen.
        """
        x, stored = tokens.astype(jnp.float32), self.position_grid or grid
        if self.class_token:
            token = self.param("class_embedding", named(self.table_init, "embed"), (self.width,))
            token = jnp.broadcast_to(token, (x.shape[0], 1, self.width))
            x = jnp.concatenate([token, x], axis=1)
        table = self.param(
            "position_embedding",
            named(self.table_init, None, "embed"),
            (self.class_token + stored[0] * stored[1], self.width),
        )
        own, positions = table[: self.class_token], table[self.class_token :]
        positions = jnp.concatenate([own, resize_positions(positions, stored, grid)])
        x = x + positions[None]
        if self.pre_norm:
            x = nn.LayerNorm(self.norm_eps, name="pre_norm")(x)
        blocks = nn.scan(
            rematerialised(ViTBlock, everything=self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        kept, slots = None, None
        if self.keep:
            # A layer writes where the next kept one will; after the last, to an unused place.
            slots = jnp.searchsorted(jnp.array(self.keep), jnp.arange(self.depth))
            kept = jnp.broadcast_to(x, (len(self.keep) + 1, *x.shape))
        (x, kept), _ = blocks(
            self.heads,
            self.mlp_width,
            self.gelu,
            self.norm_eps,
            self.dtype,
            self.layer_scale,
            self.causal,
            name="blocks",
        )((x, kept), slots)
        if self.final_norm:
            x = nn.LayerNorm(self.norm_eps, name="norm")(x)
        return (x, kept[:-1]) if self.keep else x


def resize_positions(table: jax.Array, stored: tuple[int, int], grid: tuple[int, int]) -> jax.Array:
    """Positions of one grid, [rows * columns, D] in raster order, for another grid.

    Bilinear with antialiasing and half-pixel centres, as SigLIP2's NaFlex models resize theirs.
    """
    if stored == grid:
        return table
    square = table.reshape(*stored, -1)
    resized = jax.image.resize(square, (*grid, square.shape[-1]), "linear", antialias=True)
    return resized.reshape(grid[0] * grid[1], -1)


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
    """Cuts images into patches: [B, H, W, C] -> [B, N, p * p * C], each (row, column, channel)."""
    p = patch_size
    return rearrange(images, "b (h p1) (w p2) c -> b (h w) (p1 p2 c)", p1=p, p2=p)


def unpatchify(patches: jax.Array, grid: tuple[int, int], patch_size: int) -> jax.Array:
    """The inverse of `patchify`: [B, N, p * p * C] -> [B, H, W, C]."""
    p = patch_size
    return rearrange(
        patches, "b (h w) (p1 p2 c) -> b (h p1) (w p2) c", h=grid[0], w=grid[1], p1=p, p2=p
    )
