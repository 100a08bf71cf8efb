"""The bidirectional transformer that MAR's encoder and decoder are made of."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from bar_jax.nn.attention import attend
from bar_jax.nn.decoding import layers, unstacked
from bar_jax.nn.linear import XAVIER, linear
from bar_jax.nn.mlp import GeluMLP
from bar_jax.runtime.mesh import constrain_batch

NORM_EPS = 1e-6


class Block(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + MLP(norm(x)).

    Dropout acts when a dropout rng is given.
    """

    width: int
    heads: int
    mlp_width: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        dense = functools.partial(linear, kernel_init=XAVIER, dtype=self.dtype)
        norm = functools.partial(nn.LayerNorm, NORM_EPS)
        head_dim = self.width // self.heads
        self.attention_norm, self.mlp_norm = norm(), norm()
        self.qkv = dense((3, self.heads, head_dim), ("embed", None, "heads", None))
        self.out = dense(self.width, ("heads", None, "embed"), inputs=2)
        self.mlp = GeluMLP(
            self.mlp_width, dropout=self.dropout, kernel_init=XAVIER, dtype=self.dtype
        )
        self.drop = nn.Dropout(self.dropout)

    def __call__(
        self, x: jax.Array, visible: jax.Array | None, wanted: jax.Array | None = None
    ) -> tuple[jax.Array, None]:
        """One block.

        Args:
          x: [B, S, D].
          visible: [S] bool, False at positions that nobody sees; None: all are seen.
          wanted: [W] integers, the positions whose output is needed; None: all are.

        Returns:
          [B, S, D] or [B, W, D], and what `nn.scan` stacks: nothing.
        """
        x = constrain_batch(x)
        qkv = self.qkv(self.attention_norm(x))
        query, key, value = (qkv[:, :, i] for i in range(3))
        if wanted is not None:
            x, query = x[:, wanted], query[:, wanted]
        if visible is not None:
            visible = jnp.broadcast_to(visible, (query.shape[1], key.shape[1]))
        training = self.has_rng("dropout")
        rate = self.attention_dropout if training else 0.0
        dropout_key = self.make_rng("dropout") if rate else None
        h = attend(query, key, value, visible, dropout_rate=rate, dropout_key=dropout_key)
        x += self.drop(self.out(h), deterministic=not training)
        return x + self.mlp(self.mlp_norm(x)), None


class Transformer(nn.Module):
    """Blocks and a last LayerNorm.

    Attributes:
      width, depth, heads: sizes.
      mlp_width: hidden units of the MLPs; 0: four times the width.
      dropout: of attention outputs, MLP hidden units and MLP outputs.
      attention_dropout: of attention weights.
      remat: keep of a block its input alone for the gradient, see `nn.remat`.
    """

    width: int
    depth: int
    heads: int
    mlp_width: int = 0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        sizes = (
            *(self.width, self.heads, self.mlp_width or 4 * self.width),
            *(self.dropout, self.attention_dropout, self.dtype),
        )
        self.blocks = layers(self, Block, sizes, self.depth)
        self.norm = nn.LayerNorm(NORM_EPS)

    def __call__(
        self, x: jax.Array, visible: jax.Array | None = None, wanted: jax.Array | None = None
    ) -> jax.Array:
        """All blocks and the norm; arguments as for a block."""
        x = x.astype(jnp.float32)
        if unstacked(self):
            for block in self.blocks[:-1]:
                x, _ = block(x, visible)
            x, _ = self.blocks[-1](x, visible, wanted)
        else:
            x, _ = self.blocks(x, visible)
            x = x if wanted is None else x[:, wanted]
        return self.norm(x)
