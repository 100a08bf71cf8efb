"""The linear head: one softmax over all 2^n codes (masked-bit paper, Figure 5b and Table 1)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bar_jax.heads.logits import guided, gumbel
from bar_jax.losses import Sums
from bar_jax.nn.linear import linear
from bar_jax.runtime.arguments import check_bits


class LinearHead(nn.Module):
    """Logits of a token's 2^n codes; memory and time grow with 2^n.

    A code is the token's bits read as a binary number, the first bit the highest. Its interface is
    that of every head, see `bar_jax.heads`; it needs no draws in training and knows no schedule.

    Attributes:
      bits: n, bits of a token; `validation.validate` refuses more than 18.
      width: of the transformer's projected output.
    """

    bits: int
    width: int
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.out_embed = linear(2**self.bits, ("embed", None), dtype=self.dtype)

    def __call__(self, z: jax.Array) -> jax.Array:
        """z [M, W] -> logits [M, 2^n] float32."""
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
        """Cross-entropy of the codes.

        Args:
          z: [M, W], the transformer's output for each token.
          bits: [M, n] in {0, 1}, the tokens to be predicted.
          counted: [M] bool, False where a token is padding; None: all count.

        Returns:
          Pairs of a sum and its weight: `loss` is the cross-entropy of a code in nats,
          `bits_per_bit` the same in bits per bit of the token, `bit_accuracy` the share of bits
          that the likeliest code gets right.
        """
        del draws
        check_bits(bits, z.shape[0], self.bits)
        logits = self(z)
        target = bits_to_code(bits)[:, None]
        entropy = jax.nn.logsumexp(logits, axis=-1)
        entropy -= jnp.take_along_axis(logits, target, axis=-1)[:, 0]
        right = jnp.sum(code_to_bits(jnp.argmax(logits, axis=-1), self.bits) == bits, axis=-1)
        weight = jnp.ones_like(entropy) if counted is None else counted.astype(entropy.dtype)
        total, count = jnp.sum(weight * entropy), jnp.sum(weight)
        return {
            "loss": (total, count),
            "bits_per_bit": (total / jnp.log(2.0), self.bits * count),
            "bit_accuracy": (jnp.sum(weight * right), self.bits * count),
        }

    @nn.nowrap
    def noise_shape(self, schedule: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the uniform draws that `sample` needs for one token: [2^n]."""
        del schedule
        return (2**self.bits,)

    def sample(
        self,
        z: jax.Array,
        guidance: jax.Array | None,
        temperature: jax.Array | float,
        schedule: tuple[int, ...],
        uniform: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Draws one code per example: argmax(logits + tau * Gumbel).

        Args:
          z: [B, W]; with guidance [2 B, W], the unconditional half last.
          guidance: scale s of u + s (c - u) on the logits; None for no guidance.
          temperature: tau.
          uniform: [B, 2^n] uniform draws.

        Returns:
          bits [B, n] uint8; the logits drawn from [B, 2^n].
        """
        del schedule
        logits = guided(self(z), guidance)
        code = jnp.argmax(logits + temperature * gumbel(uniform), axis=-1)
        return code_to_bits(code, self.bits), logits


def bits_to_code(bits: jax.Array) -> jax.Array:
    """Bits {0, 1} [..., n], the highest first -> int32 [...]."""
    powers = 2 ** jnp.arange(bits.shape[-1] - 1, -1, -1, dtype=jnp.int32)
    return jnp.einsum("...n,n->...", bits.astype(jnp.int32), powers)


def code_to_bits(code: jax.Array, n: int) -> jax.Array:
    """int32 [...] -> bits {0, 1} [..., n] uint8, the highest first."""
    shifts = jnp.arange(n - 1, -1, -1, dtype=jnp.int32).reshape((1,) * code.ndim + (n,))
    return (jnp.right_shift(code[..., None], shifts) & 1).astype(jnp.uint8)
