"""The masked-bit head: writes a token's n bits a few at a time (masked-bit paper, section 3.4).

Its cost grows with n, not with the 2^n codes. Hidden bits carry a third symbol, HIDDEN.
Where the paper is silent, this follows what the published weights need; that is marked below.
"""

import functools
import itertools
import math
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bar_jax.heads.kind import HeadKind
from bar_jax.heads.logits import bit_cross_entropy, gumbel
from bar_jax.losses import Sums
from bar_jax.nn.decoding import layers
from bar_jax.nn.guidance import guided
from bar_jax.nn.linear import NORMAL_02, linear, lookup, named
from bar_jax.nn.mlp import SwiGLU
from bar_jax.runtime.arguments import check_bits
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.mesh import constrain_batch

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

    width: int
    dtype: jnp.dtype

    def setup(self):
        self.adaln = linear(
            (3, self.width),
            ("embed", None, None),
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
        )
        self.norm = nn.RMSNorm(1e-6)
        self.mlp = SwiGLU(dtype=self.dtype)

    def __call__(self, x: jax.Array, condition: jax.Array) -> tuple[jax.Array, None]:
        """x, condition [M, W] -> [M, W]; the second value is what `nn.scan` stacks, nothing."""
        return self.modulated(constrain_batch(x), self.modulate(condition)), None

    def modulate(self, condition: jax.Array) -> jax.Array:
        """[..., W] -> [..., 3, W]: shift, scale, gate."""
        return self.adaln(nn.silu(condition))

    def modulated(self, x: jax.Array, modulation: jax.Array) -> jax.Array:
        """x [M, W], modulation [M, 3, W] -> [M, W]."""
        shift, scale, gate = (modulation[:, i] for i in range(3))
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class MaskedBitHead(nn.Module):
    """Logits of a token's bits, given the visible ones and the transformer's output.

    Its interface is that of every head, see `bar_jax.heads`.

    Attributes:
      bits: n, bits of a token (after token shuffling).
      width, depth: 2048 and 3 in the paper's final models (Table 2b).
      mask_ratio: how the share of hidden bits is drawn in training, `logit_normal`,
        `uniform` or `arccos` (Table 2a).
      remat: keep of a block its input alone for the gradient, see `nn.remat`.
    """

    bits: int
    width: int
    depth: int
    mask_ratio: str = "logit_normal"
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        dense = functools.partial(linear, dtype=self.dtype)
        self.time_embed_frequencies = self.param(
            "time_embed_frequencies", nn.initializers.normal(1.0), (FOURIER_FREQUENCIES,)
        )
        self.time_embed_in = dense(self.width, (None, "embed"))
        self.time_embed_out = dense(self.width, ("embed", None))
        table = (3, math.ceil(self.width / self.bits))
        self.bit_embedding = self.param("bit_embedding", named(NORMAL_02, None, None), table)
        self.in_proj = dense(self.width, (None, "embed"))
        self.in_norm = nn.RMSNorm(1e-6)
        self.blocks = layers(self, HeadBlock, (self.width, self.dtype), self.depth)
        zeros = nn.initializers.zeros
        self.out_adaln = dense((2, self.width), ("embed", None, None), kernel_init=zeros)
        self.out_norm = nn.RMSNorm(1e-6)
        self.out_embed = dense((self.bits, 2), ("embed", None, None))

    def __call__(self, symbols: jax.Array, z: jax.Array, hidden_ratio: jax.Array) -> jax.Array:
        """Logits of the bits.

        Args:
          symbols: [M, n] integers: bits {0, 1}, or HIDDEN.
          z: [M, W], the transformer's output projected to the head's width.
          hidden_ratio: [M] float32, share of hidden bits.

        Returns:
          [M, n, 2] float32: logits of 0 and 1 for every bit, hidden or not.
        """
        condition = self._condition(z, self._time_embedding(hidden_ratio))
        x, _ = self.blocks(self._embed(symbols), condition)
        return self._logits(x, self._out_modulation(condition))

    def _embed(self, symbols: jax.Array) -> jax.Array:
        """[M, n] -> [M, W]: each symbol looked up, all of them concatenated and projected."""
        x = lookup(self.bit_embedding, symbols).reshape(*symbols.shape[:-1], -1)
        return self.in_norm(self.in_proj(x))

    def _condition(self, z: jax.Array, time: jax.Array) -> jax.Array:
        return nn.silu(time + z.astype(self.dtype))

    def _out_modulation(self, condition: jax.Array) -> jax.Array:
        """[..., W] -> [..., 2, W]: scale, shift (published: in the blocks shift comes first)."""
        return self.out_adaln(nn.silu(condition))

    def _logits(self, x: jax.Array, modulation: jax.Array) -> jax.Array:
        """x [M, W], modulation [M, 2, W] -> [M, n, 2] float32."""
        x = self.out_norm(x) * (1 + modulation[:, 0]) + modulation[:, 1]
        return self.out_embed(x).astype(jnp.float32)

    def _time_embedding(self, hidden_ratio: jax.Array) -> jax.Array:
        """Random Fourier features of the hidden share, then an MLP: [M] -> [M, W]."""
        # Drawn once, never trained.
        frequencies = jax.lax.stop_gradient(self.time_embed_frequencies)
        angles = 2 * jnp.pi * hidden_ratio[:, None] * frequencies[None]
        features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        # Its kernel is cut along the hidden units, the features along the rows: without the
        # constraint the compiler gathers the rows of all devices.
        hidden = constrain_batch(self.time_embed_in(constrain_batch(features)))
        return self.time_embed_out(nn.silu(hidden))

    @property
    def uniforms_per_token(self) -> int:
        """How many uniform draws a token needs in training."""
        return 1 + self.bits

    @nn.nowrap
    def draws(self, uniform: jax.Array) -> Masking:
        """Turns uniform draws [..., 1 + n] into what `loss` needs: the first gives the ratio."""
        ratio = uniform[..., 0]
        if self.mask_ratio == "logit_normal":
            ratio = logit_normal_ratio(jax.scipy.special.ndtri(ratio))
        elif self.mask_ratio == "arccos":
            ratio = 2 / jnp.pi * jnp.arccos(ratio)
        return Masking(ratio=ratio, uniform=uniform[..., 1:])

    def loss(
        self, z: jax.Array, bits: jax.Array, draws: Masking, counted: jax.Array | None = None
    ) -> Sums:
        """Masked-bit loss of tokens (eq. 7).

        Args:
          z: [M, W], the transformer's output for each token.
          bits: [M, n] in {0, 1}, the tokens to be predicted.
          draws: for M tokens.
          counted: [M] bool, False where a token is padding; None: all count.

        Returns:
          Pairs of a sum and its weight, so that pieces of a batch can be added up: `loss` is the
          cross-entropy in nats (weight 1 on hidden bits, 0.1 on visible ones), `bits_per_bit` the
          cross-entropy of the hidden bits in bits, `bit_accuracy` the share of them that the
          larger logit gets right.
        """
        check_bits(bits, z.shape[0], self.bits)
        symbols, hidden, ratio = hide(bits, draws.ratio, draws.uniform)
        logits = self(symbols, z, ratio)
        entropy = bit_cross_entropy(logits, bits)
        weight = jnp.where(hidden, 1.0, VISIBLE_WEIGHT)
        if counted is not None:
            hidden &= counted[:, None]
            weight *= counted[:, None]
        right = jnp.argmax(logits, axis=-1) == bits
        # Of counts: adding thousands of times 0.1 would round, differently in pieces of a batch.
        count, rows = jnp.sum(hidden), len(bits) if counted is None else jnp.sum(counted)
        total_weight = count + VISIBLE_WEIGHT * (rows * bits.shape[1] - count)
        return {
            "loss": (jnp.sum(weight * entropy), total_weight),
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
        noise. Needs parameters that `nn.decoding.decoding_params` has laid out.

        Args:
          z: [B, W]; with guidance [2 B, W], the unconditional half last.
          guidance: scale s of u + s (c - u) on the logits; None for no guidance.
          temperature: tau.
          schedule: (b_1, ..., b_T), positive, summing to n.
          uniform: [B, T, n, 3] uniform draws: two for the symbols, one for the confidence.

        Returns:
          bits [B, n] uint8; the logits drawn from at each step [T, B, n, 2].
        """
        if sum(schedule) != self.bits or min(schedule) < 1:
            expected = f"positive numbers that sum to {self.bits} bits"
            raise InputError("schedule", str(tuple(schedule)), expected)
        batch, branches = uniform.shape[0], 1 if guidance is None else 2
        shown = itertools.accumulate(schedule[:-1], initial=0)
        shares = jnp.array([(self.bits - count) / self.bits for count in shown], jnp.float32)
        # The condition does not depend on the bits: one product modulates all steps [T, M, ...].
        condition = self._condition(z[None], self._time_embedding(shares)[:, None])
        modulations = [block.modulate(condition) for block in self.blocks]
        out_modulation = self._out_modulation(condition)

        def logits(symbols, t):
            x = jnp.tile(self._embed(symbols), (branches, 1))  # both branches see the same bits
            for block, modulation in zip(self.blocks, modulations, strict=True):
                x = block.modulated(x, modulation[t])
            return guided(self._logits(x, out_modulation[t]), guidance)

        return unmask(logits, (batch, self.bits), temperature, schedule, gumbel(uniform))


def unmask(
    logits: Callable[[jax.Array, int], jax.Array],
    shape: tuple[int, int],
    temperature: jax.Array | float,
    schedule: tuple[int, ...],
    noise: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The unmasking of `MaskedBitHead.sample`, whatever gives the logits.

    Args:
      logits: (symbols [B, n], step t) -> [B, n, 2].
      shape: (B, n).
      noise: [B, T, n, 3] Gumbel noise.

    Returns:
      As `MaskedBitHead.sample`.
    """
    _, n = shape
    symbols = jnp.full(shape, HIDDEN, jnp.int32)
    all_logits = []
    shown = 0
    for t, count in enumerate(schedule):
        step_logits = logits(symbols, t)
        all_logits.append(step_logits)
        scale = temperature * (1 - t / len(schedule))
        drawn = jnp.argmax(step_logits + scale * noise[:, t, :, :2], axis=-1)
        hidden = symbols == HIDDEN
        symbols = jnp.where(hidden, drawn, symbols)
        shown += count
        if shown < n:
            own = jnp.take_along_axis(step_logits, drawn[..., None], axis=-1)[..., 0]
            confidence = jnp.where(hidden, own + scale * noise[:, t, :, 2], jnp.inf)
            cut = jnp.sort(confidence, axis=-1)[:, n - shown - 1, None]
            symbols = jnp.where(confidence <= cut, HIDDEN, symbols)
    return symbols.astype(jnp.uint8), jnp.stack(all_logits)


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
      to [1/n, 1] but not rounded, which is what the head gets (published).
    """
    n = bits.shape[-1]
    ratio = jnp.clip(ratio, 1 / n, 1.0)
    count = jnp.maximum(jnp.round(n * ratio), 1)  # half to even
    # The argsort itself serves as the random permutation (published); any permutation would do.
    hidden = jnp.argsort(uniform, axis=-1) < count[..., None]
    return jnp.where(hidden, HIDDEN, bits.astype(jnp.int32)), hidden, ratio


def _make(config: ConfigDict, bits: int, remat: bool) -> MaskedBitHead:
    head = config.model.head
    return MaskedBitHead(
        bits=bits,
        width=head.width,
        depth=head.depth,
        mask_ratio=head.mask_ratio,
        remat=remat,
        dtype=jnp.dtype(config.dtype),
    )


def _check_schedule(config: ConfigDict, bits: int) -> None:
    schedule = config.sample.unmasking_schedule
    whole = all(type(count) is int and count > 0 for count in schedule)
    if not (whole and sum(schedule) == bits and sorted(schedule) == list(schedule)):
        total = f", which sums to {sum(schedule)}" if whole else ""
        raise InputError(
            "sample.unmasking_schedule",
            f"{tuple(schedule)}{total}",
            f"positive, non-decreasing integers that sum to {bits} bits",
        )


KIND = HeadKind(
    make=_make,
    writes_bits=True,
    fields=("width", "depth", "mask_ratio"),
    sampling_fields=("unmasking_schedule",),
    evaluations=lambda config: len(config.sample.unmasking_schedule),
    check_sampling=_check_schedule,
)
