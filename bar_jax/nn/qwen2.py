"""Qwen2 (Yang et al. 2024): a causal language model, here an encoder of texts."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bar_jax.nn.attention import attend
from bar_jax.nn.linear import NORMAL_02, linear, named
from bar_jax.nn.rotary import axial_table, rotate
from bar_jax.runtime.mesh import constrain_batch


class Qwen2(nn.Module):
    """Hidden states of texts, after the last norm; the sizes by default are those of Qwen2-1.5B.

    A token sees itself and those before it, so padding at the end of a text changes nothing.

    Attributes:
      width, depth, heads, mlp_width: sizes of the transformer.
      kv_heads: heads of keys and values, each for heads / kv_heads of the queries.
      vocabulary: rows of the embedding.
      rotary_base: of the rotary embedding.
      norm_eps: epsilon of every RMSNorm.
      dtype: what products are computed in; float32 ones are of whole float32 numbers.
    """

    width: int = 1536
    depth: int = 28
    heads: int = 12
    kv_heads: int = 2
    mlp_width: int = 8960
    vocabulary: int = 151_936
    rotary_base: float = 1e6
    norm_eps: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Token ids [B, T] -> hidden states [B, T, width] float32.

        Args:
          mask: bool [B, T], False where a text is filled up. Those states mean nothing.
        """
        del mask  # padding stands at the end, where no token of a text looks
        table = self.param(
            "token_embedding", named(NORMAL_02, None, "embed"), (self.vocabulary, self.width)
        )
        x = table[tokens].astype(jnp.float32)
        cos, sin = axial_table((tokens.shape[1],), self.width // self.heads, base=self.rotary_base)
        blocks = nn.scan(
            Qwen2Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        with jax.default_matmul_precision("highest"):
            x, _ = blocks(
                self.heads, self.kv_heads, self.mlp_width, self.norm_eps, self.dtype, name="blocks"
            )(x, (cos[None], sin[None]))
        return nn.RMSNorm(self.norm_eps, name="norm")(x)


class Qwen2Block(nn.Module):
    """x + attention(norm(x)) with rotary embedding, then x + SwiGLU(norm(x))."""

    heads: int
    kv_heads: int
    mlp_width: int
    norm_eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, turns: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        """One layer of the scan: x [B, T, D], and cosines and sines [1, T, D / heads]."""
        width = x.shape[-1]
        head_dim = width // self.heads
        x = constrain_batch(x)
        h = nn.RMSNorm(self.norm_eps, name="attention_norm")(x)
        of_heads = lambda heads, name: linear(
            (heads, head_dim), ("embed", "heads", None), dtype=self.dtype, name=name
        )(h)
        query, key = of_heads(self.heads, "query"), of_heads(self.kv_heads, "key")
        h = attend(
            rotate(query, *turns),
            rotate(key, *turns),
            of_heads(self.kv_heads, "value"),
            causal=True,
        )
        x += _without_bias(width, ("heads", None, "embed"), self.dtype, "out", inputs=2)(h)
        h = nn.RMSNorm(self.norm_eps, name="mlp_norm")(x)
        into, dtype = ("embed", "mlp"), self.dtype
        gate = nn.silu(_without_bias(self.mlp_width, into, dtype, "gate")(h))
        h = gate * _without_bias(self.mlp_width, into, dtype, "up")(h)
        return x + _without_bias(width, ("mlp", "embed"), dtype, "down")(h), None


def _without_bias(
    features: int, axes: tuple[str | None, ...], dtype: jnp.dtype, name: str, inputs: int = 1
) -> nn.DenseGeneral:
    return nn.DenseGeneral(
        features,
        axis=tuple(range(-inputs, 0)),
        use_bias=False,
        dtype=dtype,
        kernel_init=named(NORMAL_02, *axes),
        name=name,
    )
