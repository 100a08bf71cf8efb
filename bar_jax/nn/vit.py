"""The Vision Transformer that every ViT of the project is made of (Dosovitskiy et al. 2021).

It works on tokens: what turns an image into tokens (a patch embedding) or tokens into an image
stands with its caller.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from bar_jax.mesh import constrain_batch
from bar_jax.nn.attention import attend
from bar_jax.nn.linear import NORMAL_02, Init, linear, named
from bar_jax.nn.mlp import GeluMLP


class ViTBlock(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + MLP(norm(x))."""

    heads: int
    mlp_width: int
    gelu_approximate: bool
    norm_eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        """[B, N, D] -> [B, N, D]; the second value is what `nn.scan` stacks, nothing."""
        width = x.shape[-1]
        x = constrain_batch(x)
        h = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="attention_norm")(x)
        h = linear(
            (3, self.heads, width // self.heads),
            ("embed", None, "heads", None),
            dtype=self.dtype,
            name="qkv",
        )(h)
        h = attend(h[:, :, 0], h[:, :, 1], h[:, :, 2])
        x += linear(width, ("heads", None, "embed"), inputs=2, dtype=self.dtype, name="out")(h)
        h = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="mlp_norm")(x)
        x += GeluMLP(self.mlp_width, self.gelu_approximate, dtype=self.dtype, name="mlp")(h)
        return x, None


class ViT(nn.Module):
    """Learned positions, an optional class token and norm in front, blocks, a final norm.

    Attributes:
      width, depth, heads, mlp_width: sizes of the transformer.
      class_token: put a learned token in front (kept in the output).
      pre_norm: LayerNorm before the first block.
      gelu_approximate: tanh-GELU (SigLIP2) instead of the exact one (DINO, the decoder).
      norm_eps: epsilon of every LayerNorm.
      table_init: initialiser of the class token and the positions.
      remat: recompute a block's activations in the backward pass instead of keeping them.
    """

    width: int
    depth: int
    heads: int
    mlp_width: int
    class_token: bool = False
    pre_norm: bool = False
    gelu_approximate: bool = False
    norm_eps: float = 1e-6
    table_init: Init = NORMAL_02
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """[B, N, width] -> [B, N, width], with the class token in front [B, 1 + N, width]."""
        x = tokens.astype(self.dtype)
        if self.class_token:
            token = self.param("class_embedding", named(self.table_init, "embed"), (self.width,))
            token = jnp.broadcast_to(token.astype(self.dtype), (x.shape[0], 1, self.width))
            x = jnp.concatenate([token, x], axis=1)
        table_shape = (x.shape[1], self.width)
        positions = self.param(
            "position_embedding", named(self.table_init, None, "embed"), table_shape
        )
        x = x + positions.astype(self.dtype)[None]
        if self.pre_norm:
            x = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="pre_norm")(x)
        block = nn.remat(ViTBlock, prevent_cse=False) if self.remat else ViTBlock
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = blocks(
            self.heads,
            self.mlp_width,
            self.gelu_approximate,
            self.norm_eps,
            self.dtype,
            name="blocks",
        )(x, None)
        return nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="norm")(x)


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
