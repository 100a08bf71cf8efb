"""The masked-bit head: writes a token's n bits a few at a time (masked-bit paper, section 3.4).

Its cost grows with n, not with the 2^n codes. Hidden bits carry a third symbol, HIDDEN.
Where the paper is silent, this follows what the published weights need; that is marked below.
"""

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from bar_jax.losses import Sums
from bar_jax.mesh import constrain_batch
from bar_jax.nn.linear import NORMAL_02, linear, named
from bar_jax.nn.mlp import SwiGLU

HIDDEN = 2  # the symbol of a hidden bit, beside 0 and 1
VISIBLE_WEIGHT = 0.1  # weight of a visible bit's cross-entropy; a hidden one weighs 1
LOGIT_NORMAL_SCALE = 0.8
FOURIER_FREQUENCIES = 256


class Masking(flax.struct.PyTreeNode):
    """Random draws that decide which bits are hidden.

    Attributes:
      ratio: [M] share of bits to hide.
      uniform: [M, n] uniform draws that choose them.
    """

    ratio: jax.Array
    uniform: jax.Array


class HeadBlock(nn.Module):
    """Modulated RMSNorm, SwiGLU, gated residual."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> tuple[jax.Array, None]:
        """x, condition [M, W] -> [M, W]; the second value is what `nn.scan` stacks, nothing."""
        width = x.shape[-1]
        x = constrain_batch(x)
        modulation = linear(
            (3, width),
            ("embed", None, None),
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="adaln",
        )(nn.silu(condition))
        shift, scale, gate = jnp.split(modulation, 3, axis=-2)
        h = nn.RMSNorm(1e-6, dtype=self.dtype, name="norm")(x)
        h = h * (1 + scale[:, 0]) + shift[:, 0]
        return x + gate[:, 0] * SwiGLU(dtype=self.dtype, name="mlp")(h), None


class MaskedBitHead(nn.Module):
    """Logits of a token's bits, given the visible ones and the transformer's output.

    A head offers `masking`, `loss` and `sample` and says how many random numbers they need; the
    generators know nothing else of it.

    Attributes:
      bits: n, bits of a token (after token shuffling).
      width, depth: 2048 and 3 in the paper's final models (Table 2b).
      mask_ratio: how the share of hidden bits is drawn in training, `logit_normal`,
        `uniform` or `arccos` (Table 2a).
    """

    bits: int
    width: int
    depth: int
    mask_ratio: str = "logit_normal"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, symbols: jax.Array, z: jax.Array, hidden_ratio: jax.Array) -> jax.Array:
        """Logits of the bits.

        Args:
          symbols: [M, n] integers: bits {0, 1}, or HIDDEN.
          z: [M, W], the transformer's output projected to the head's width.
          hidden_ratio: [M] float32, share of hidden bits.

        Returns:
          [M, n, 2] float32: logits of 0 and 1 for every bit, hidden or not.
        """
        dense = lambda size, axes, name: linear(size, axes, dtype=self.dtype, name=name)
        condition = nn.silu(self._time_embedding(hidden_ratio) + z.astype(self.dtype))

        bit_width = math.ceil(self.width / self.bits)
        table = self.param("bit_embedding", named(NORMAL_02, None, None), (3, bit_width))
        x = table.astype(self.dtype)[symbols].reshape(*symbols.shape[:-1], -1)
        x = dense(self.width, (None, "embed"), "in_proj")(x)
        x = nn.RMSNorm(1e-6, dtype=self.dtype, name="in_norm")(x)
        blocks = nn.scan(
            HeadBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = blocks(self.dtype, name="blocks")(x, condition)
        # Published: here the chunks are (scale, shift); in the blocks (shift, scale, gate).
        modulation = linear(
            (2, self.width),
            ("embed", None, None),
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="out_adaln",
        )(nn.silu(condition))
        x = nn.RMSNorm(1e-6, dtype=self.dtype, name="out_norm")(x)
        x = x * (1 + modulation[:, 0]) + modulation[:, 1]
        logits = dense((self.bits, 2), ("embed", None, None), "out_embed")(x)
        return logits.astype(jnp.float32)

    @nn.nowrap
    def _time_embedding(self, hidden_ratio: jax.Array) -> jax.Array:
        """Random Fourier features of the hidden share, then an MLP: [M] -> [M, W]."""
        frequencies = self.param(
            "time_embed_frequencies", nn.initializers.normal(1.0), (FOURIER_FREQUENCIES,)
        )
        # Drawn once, never trained.
        angles = 2 * jnp.pi * hidden_ratio[:, None] * jax.lax.stop_gradient(frequencies)[None]
        features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        h = linear(self.width, (None, "embed"), dtype=self.dtype, name="time_embed_in")(features)
        h = nn.silu(h)
        return linear(self.width, ("embed", None), dtype=self.dtype, name="time_embed_out")(h)

    @property
    def uniforms_per_token(self) -> int:
        """How many uniform draws `masking` needs for a token."""
        return 1 + self.bits

    @nn.nowrap
    def masking(self, uniform: jax.Array) -> Masking:
        """Turns uniform draws [..., 1 + n] into what `loss` needs: the first gives the ratio."""
        ratio = uniform[..., 0]
        if self.mask_ratio == "logit_normal":
            ratio = logit_normal_ratio(jax.scipy.special.ndtri(ratio))
        elif self.mask_ratio == "arccos":
            ratio = 2 / jnp.pi * jnp.arccos(ratio)
        return Masking(ratio=ratio, uniform=uniform[..., 1:])

    def loss(
        self, z: jax.Array, bits: jax.Array, masking: Masking, counted: jax.Array | None = None
    ) -> Sums:
        """Masked-bit loss of tokens (eq. 7).

        Args:
          z: [M, W], the transformer's output for each token.
          bits: [M, n] in {0, 1}, the tokens to be predicted.
          masking: draws for M tokens.
          counted: [M] bool, False where a token is padding; None: all count.

        Returns:
          Pairs of a sum and its weight, so that pieces of a batch can be added up: `loss` is the
          cross-entropy in nats (weight 1 on hidden bits, 0.1 on visible ones), `bits_per_bit` the
          cross-entropy of the hidden bits in bits, `bit_accuracy` the share of them that the
          larger logit gets right.
        """
        symbols, hidden, ratio = hide(bits, masking.ratio, masking.uniform)
        logits = self(symbols, z, ratio)
        entropy = bit_cross_entropy(logits, bits)
        weight = jnp.where(hidden, 1.0, VISIBLE_WEIGHT)
        if counted is not None:
            hidden &= counted[:, None]
            weight *= counted[:, None]
        right = jnp.argmax(logits, axis=-1) == bits
        count = jnp.sum(hidden)
        return {
            "loss": (jnp.sum(weight * entropy), jnp.sum(weight)),
            "bits_per_bit": (jnp.sum(hidden * entropy) / jnp.log(2.0), count),
            "bit_accuracy": (jnp.sum(hidden & right), count),
        }

    @nn.nowrap
    def noise_shape(self, schedule: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the uniform draws that `sample` needs for one token: [T, n, 3]."""
        return (len(schedule), self.bits, 3)

    def sample(
        self,
        z: jax.Array,
        guidance: jax.Array | None,
        temperature: jax.Array | float,
        schedule: tuple[int, ...],
        uniform: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Writes one token per example in T steps, b_1 + ... + b_t of its bits shown after step t.

        At step t (from 0) the temperature is tau (1 - t / T). Every hidden bit is drawn; the least
        confident stay hidden, ties among them too. A bit's confidence is its own logit plus Gumbel
        noise.

        Args:
          z: [B, W]; with guidance [2 B, W], the unconditional half last.
          guidance: scale s of u + s (c - u) on the logits; None for no guidance.
          temperature: tau.
          schedule: (b_1, ..., b_T), positive, summing to n.
          uniform: [B, T, n, 3] uniform draws: two for the symbols, one for the confidence.

        Returns:
          bits [B, n] uint8; the logits drawn from at each step [T, B, n, 2].
        """
        batch, steps = uniform.shape[0], len(schedule)
        symbols = jnp.full((batch, self.bits), HIDDEN, jnp.int32)
        noise = gumbel(uniform)
        all_logits = []
        shown = 0
        for t, count in enumerate(schedule):
            logits = self._guided_logits(symbols, z, (self.bits - shown) / self.bits, guidance)
            all_logits.append(logits)
            scale = temperature * (1 - t / steps)
            drawn = jnp.argmax(logits + scale * noise[:, t, :, :2], axis=-1)
            hidden = symbols == HIDDEN
            symbols = jnp.where(hidden, drawn, symbols)
            shown += count
            if shown < self.bits:
                own = jnp.take_along_axis(logits, drawn[..., None], axis=-1)[..., 0]
                confidence = jnp.where(hidden, own + scale * noise[:, t, :, 2], jnp.inf)
                cut = jnp.sort(confidence, axis=-1)[:, self.bits - shown - 1, None]
                symbols = jnp.where(confidence <= cut, HIDDEN, symbols)
        return symbols.astype(jnp.uint8), jnp.stack(all_logits)

    def _guided_logits(self, symbols, z, share, guidance):
        """Logits [B, n, 2] with `share` of the bits hidden."""
        if guidance is not None:
            symbols = jnp.concatenate([symbols, symbols])
        logits = self(symbols, z, jnp.full(z.shape[:1], share, jnp.float32))
        if guidance is None:
            return logits
        conditional, unconditional = jnp.split(logits, 2)
        return unconditional + guidance * (conditional - unconditional)


def logit_normal_ratio(normal: jax.Array) -> jax.Array:
    """1 - sigmoid(0.8 z) of standard normal numbers z."""
    return 1 - jax.nn.sigmoid(LOGIT_NORMAL_SCALE * normal)


def hide(bits: jax.Array, ratio: jax.Array, uniform: jax.Array) -> tuple[jax.Array, ...]:
    """Hides round(n * ratio) bits of each token, at least one, chosen uniformly.

    Args:
      bits: [..., n] in {0, 1}.
      ratio: [...] share of bits to hide.
      uniform: [..., n] uniform draws that choose them.

    Returns:
      symbols [..., n] int32 with HIDDEN at hidden places; hidden [..., n] bool; the ratio clipped
      to [1/n, 1] but not rounded, which is what the head is told (published).
    """
    n = bits.shape[-1]
    ratio = jnp.clip(ratio, 1 / n, 1.0)
    count = jnp.maximum(jnp.round(n * ratio), 1)  # half to even
    # The argsort itself serves as the random permutation (published); any permutation would do.
    hidden = jnp.argsort(uniform, axis=-1) < count[..., None]
    return jnp.where(hidden, HIDDEN, bits.astype(jnp.int32)), hidden, ratio


def bit_cross_entropy(logits: jax.Array, bits: jax.Array) -> jax.Array:
    """Cross-entropy (nats) of each bit: logits [..., n, 2], bits [..., n] -> [..., n]."""
    # log-sum-exp of two numbers minus one of them.
    sign = 2.0 * bits.astype(jnp.float32) - 1
    return jax.nn.softplus(-sign * (logits[..., 1] - logits[..., 0]))


def gumbel(uniform: jax.Array) -> jax.Array:
    """Gumbel noise of uniform draws, clipped as in the published sampler."""
    floor = 1e-20
    return -jnp.log(jnp.maximum(-jnp.log(jnp.maximum(uniform, floor)), floor))
