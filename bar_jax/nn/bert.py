"""BERT (Devlin et al. 2019): an encoder of texts; all-MiniLM-L6-v2 is a small one."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bar_jax.nn.linear import NORMAL_02, linear, named
from bar_jax.nn.mlp import GeluMLP
from bar_jax.runtime.mesh import constrain_batch


class BERT(nn.Module):
    """Hidden states of texts, after the last block; the sizes by default are all-MiniLM-L6-v2's.

    Attributes:
      width, depth, heads, mlp_width: sizes of the transformer.
      vocabulary, positions: rows of the two embeddings.
      norm_eps: epsilon of every LayerNorm.
      dtype: what products are computed in; float32 ones are of whole float32 numbers.
    """

    width: int = 384
    depth: int = 6
    heads: int = 12
    mlp_width: int = 1536
    vocabulary: int = 30_522
    positions: int = 512
    norm_eps: float = 1e-12
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Token ids [B, T] of one sentence each -> hidden states [B, T, width] float32.

        Args:
          mask: bool [B, T], False where a text is filled up. Nothing looks there, and those states
            mean nothing.
        """
        table = lambda name, rows: self.param(
            name, named(NORMAL_02, None, "embed"), (rows, self.width)
        )
        x = table("token_embedding", self.vocabulary)[tokens]
        x += table("position_embedding", self.positions)[None, : tokens.shape[1]]
        x += table("sentence_embedding", 2)[None, :1]
        x = nn.LayerNorm(self.norm_eps, name="norm")(x)
        blocks = nn.scan(
            BERTBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        with jax.default_matmul_precision("highest"):
            x, _ = blocks(self.heads, self.mlp_width, self.norm_eps, self.dtype, name="blocks")(
                x, mask
            )
        return x


class BERTBlock(nn.Module):
    """Post-norm block: norm(x + attention(x)), then norm(x + MLP(x)) with the exact GELU."""

    heads: int
    mlp_width: int
    norm_eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
        """One layer of the scan: x [B, T, D], and the mask [B, T] of what is seen."""
        width, dtype = x.shape[-1], self.dtype
        x = constrain_batch(x)
        heads = (3, self.heads, width // self.heads)
        h = linear(heads, ("embed", None, "heads", None), dtype=dtype, name="qkv")(x)
        h = jax.nn.dot_product_attention(
            h[:, :, 0], h[:, :, 1], h[:, :, 2], mask=mask[:, None, None], implementation="xla"
        )
        h = linear(width, ("heads", None, "embed"), inputs=2, dtype=dtype, name="out")(h)
        x = nn.LayerNorm(self.norm_eps, name="attention_norm")(x + h)
        h = GeluMLP(self.mlp_width, "exact", dtype=dtype, name="mlp")(x)
        return nn.LayerNorm(self.norm_eps, name="mlp_norm")(x + h), None
