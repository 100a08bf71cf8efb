"""The bit head: a token's bits drawn independently (masked-bit paper, Figure 5c and Table 1)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bar_jax.heads.kind import HeadKind
from bar_jax.heads.logits import bit_cross_entropy, gumbel
from bar_jax.losses import Sums
from bar_jax.nn.guidance import guided
from bar_jax.nn.linear import linear
from bar_jax.runtime.arguments import check_bits


class BitHead(nn.Module):
    """Logits of a token's n bits from one linear layer; no bit knows the others.

    Its interface is that of every head, see `bar_jax.heads`; it needs no draws in training and
    knows no schedule.

    Attributes:
      bits: n, bits of a token.
      width: of the transformer's projected output.
    """

    bits: int
    width: int
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.out_embed = linear((self.bits, 2), ("embed", None, None), dtype=self.dtype)

    def __call__(self, z: jax.Array) -> jax.Array:
        """z [M, W] -> logits [M, n, 2] float32, of 0 and 1 for every bit."""
        return self.out_embed(z).astype(jnp.float32)

    @property
    def uniforms_per_token(self) -> int:
        """How many uniform draws a token needs in training."""
        return 0

    @nn.nowrap
    def draws(self, uniform: jax.Array) -> None:
        """Nothing is random in training."""
        del uniform

    def loss(
        self, z: jax.Array, bits: jax.Array, draws: None, counted: jax.Array | None = None
    ) -> Sums:
        """Cross-entropy of the bits.

        Args:
          z: [M, W], the transformer's output for each token.
          bits: [M, n] in {0, 1}, the tokens to be predicted.
          counted: [M] bool, False where a token is padding; None: all count.

        Returns:
          Pairs of a sum and its weight: `loss` is the cross-entropy of a bit in nats,
          `bits_per_bit` the same in bits, `bit_accuracy` the share of bits that the larger logit
          gets right.
        """
        del draws
        check_bits(bits, z.shape[0], self.bits)
        logits = self(z)
        entropy = bit_cross_entropy(logits, bits)
        right = jnp.argmax(logits, axis=-1) == bits
        weight = jnp.ones_like(entropy)
        if counted is not None:
            weight *= counted[:, None]
        total, count = jnp.sum(weight * entropy), jnp.sum(weight)
        return {
            "loss": (total, count),
            "bits_per_bit": (total / jnp.log(2.0), count),
            "bit_accuracy": (jnp.sum(weight * right), count),
        }

    @nn.nowrap
    def noise_shape(self, schedule: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the uniform draws that `sample` needs for one token: [n, 2]."""
        del schedule
        return (self.bits, 2)

    def sample(
        self,
        z: jax.Array,
        guidance: jax.Array | None,
        temperature: jax.Array | float,
        schedule: tuple[int, ...],
        uniform: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Draws every bit of one token per example: argmax(logits + tau * Gumbel).

        Args:
          z: [B, W]; with guidance [2 B, W], the unconditional half last.
          guidance: scale s of u + s (c - u) on the logits; None for no guidance.
          temperature: tau.
          uniform: [B, n, 2] uniform draws.

        Returns:
          bits [B, n] uint8; the logits drawn from [B, n, 2].
        """
        del schedule
        logits = guided(self(z), guidance)
        bits = jnp.argmax(logits + temperature * gumbel(uniform), axis=-1)
        return bits.astype(jnp.uint8), logits


def _make(config: ConfigDict, bits: int, remat: bool) -> BitHead:
    del remat  # nothing is kept that is worth it
    return BitHead(bits, config.model.head.width, dtype=jnp.dtype(config.dtype))


KIND = HeadKind(make=_make, writes_bits=True, fields=("width",))
