"""The linear head: one softmax over all 2^n codes (masked-bit paper, Figure 5b and Table 1)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bar_jax.heads.kind import HeadKind
from bar_jax.heads.logits import gumbel
from bar_jax.losses import Sums
from bar_jax.nn.guidance import guided
from bar_jax.nn.linear import linear
from bar_jax.runtime.arguments import check_bits
from bar_jax.runtime.errors import InputError

MOST_BITS = 18  # the paper stops there too: 262,144 codes


class LinearHead(nn.Module):
    """Logits of a token's 2^n codes; memory and time grow with 2^n.

    A code is the token's bits read as a binary number, the first bit the highest. Its interface is
    that of every head, see `bar_jax.heads`; it needs no draws in training and knows no schedule.

    Attributes:
      bits: n, bits of a token; at most `MOST_BITS` in a config.
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


def _make(config: ConfigDict, bits: int, remat: bool) -> LinearHead:
    del remat  # nothing is kept that is worth it
    return LinearHead(bits, config.model.head.width, dtype=jnp.dtype(config.dtype))


def _check(config: ConfigDict, bits: int) -> None:
    if bits > MOST_BITS:
        width = config.model.head.width
        weights = width * 2**bits * 4
        raise InputError(
            "model.head.kind",
            f"linear at {bits} bits per token",
            f"at most {MOST_BITS} bits: its {width} x 2^{bits} weights would take "
            f"{_amount(weights)}, in training {_amount(4 * weights)}; masked_bit takes any bits",
        )


def _amount(size: int) -> str:
    """Bytes for people: 16 KiB, 32 TiB, 2^80 bytes."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    power = (size.bit_length() - 1) // 10
    if power >= len(units):
        return f"2^{math.log2(size):.0f} bytes"
    return f"{size / 2 ** (10 * power):.3g} {units[power]}"


KIND = HeadKind(make=_make, writes_bits=True, fields=("width",), check=_check)
