"""The masked-bit generator: causal transformer, head, training loss and sampler."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from bar_jax.bases import RANDOM, Basis, permutation
from bar_jax.generators.causal import CausalTransformer
from bar_jax.generators.settings import Settings
from bar_jax.generators.shuffle import shuffle, unshuffle
from bar_jax.generators.writing import token_guidance, write_tokens
from bar_jax.losses import Sums
from bar_jax.nn.decoding import Weights, decoding_params
from bar_jax.runtime.arguments import check_bits, check_labels, check_scale
from bar_jax.runtime.errors import InputError


class Draws(flax.struct.PyTreeNode):
    """Random draws of one training step, one row per example.

    Attributes:
      label: [B] uniform; the label is dropped where below `label_dropout`.
      order_choice: [B] uniform; the order is random where below the random share.
      order_places: [B, L] uniform; their argsort is the random order.
      head: of the head, [B, L, ...].
    """

    label: jax.Array
    order_choice: jax.Array
    order_places: jax.Array
    head: Any


class MaskedBitGenerator(nn.Module):
    """p(bits of an image's tokens | class).

    Tokens enter and leave as the tokenizer knows them: bits {0, 1} [B, N, k] in raster order.

    Attributes:
      trunk: the causal transformer, over tokens of n = k p^2 bits.
      head: from the trunk's output to one token.
      token_grid: rows and columns of the tokenizer's tokens.
      patch_size: p of token shuffling.
      label_dropout: share of examples trained without their class.
      basis: which order tokens are written in.
    """

    trunk: CausalTransformer
    head: nn.Module
    token_grid: tuple[int, int]
    patch_size: int = 1
    label_dropout: float = 0.1
    basis: Basis = Basis(RANDOM)

    token_dtype = jnp.uint8

    @property
    def token_shape(self) -> tuple[int, int]:
        """N, k."""
        bits = self.trunk.bits // self.patch_size**2
        return self.token_grid[0] * self.token_grid[1], bits

    @property
    def length(self) -> int:
        """Tokens that are written."""
        return self.trunk.num_tokens

    @property
    def prefix(self) -> int:
        """Positions in front of them."""
        return self.trunk.prefix

    def draw(self, keys: jax.Array, batch_key: jax.Array | None = None) -> Draws:
        """Draws for a training step, each example's from its own key [B]; `batch_key` of none."""
        del batch_key
        length, per_token = self.trunk.num_tokens, self.head.uniforms_per_token
        # One call for all: every call of the generator costs seconds of compilation on CPU.
        size = 2 + length * (1 + per_token)
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (size,)))(keys)
        head = uniform[:, 2 + length :].reshape(keys.shape[0], length, per_token)
        return Draws(
            label=uniform[:, 0],
            order_choice=uniform[:, 1],
            order_places=uniform[:, 2 : 2 + length],
            head=self.head.draws(head),
        )

    def loss(
        self,
        bits: jax.Array,
        labels: jax.Array,
        draws: Draws,
        random_share: jax.Array | float,
        deterministic: bool,
        counted: jax.Array | None = None,
    ) -> Sums:
        """The head's loss over all tokens of a batch.

        Args:
          bits: [B, N, k] in {0, 1}.
          labels: [B] in 0..num_classes - 1.
          random_share: probability of a random order (RAR); the rest is the basis's.
          deterministic: evaluation: every label kept. (Dropout needs a dropout rng.)
          counted: [B] bool, False where an example is padding; None: all count.

        Returns:
          Pairs of a sum and its weight; see the head's `loss`.
        """
        check_labels(labels, self.trunk.num_classes - 1)
        check_bits(bits, labels.shape[0], *self.token_shape)
        if not deterministic:
            dropped = draws.label < self.label_dropout
            labels = jnp.where(dropped, self.trunk.num_classes, labels)
        random = draws.order_choice, draws.order_places
        order = permutation.draw_orders(random_share, *random, self._order())
        tokens = permutation.gather(shuffle(bits, self.token_grid, self.patch_size), order)
        z = self.trunk(tokens, labels, order)
        flat = lambda x: x.reshape(-1, *x.shape[2:])
        if counted is not None:
            counted = jnp.repeat(counted, order.shape[1])
        return self.head.loss(flat(z), flat(tokens), jax.tree.map(flat, draws.head), counted)

    @nn.nowrap
    def _order(self) -> np.ndarray:
        """[L] the fixed order; of RAR, raster, to which it is annealed."""
        # Of tokens in the image, also where the trunk knows their places in the sequence alone.
        rows, columns = (side // self.patch_size for side in self.token_grid)
        return self.basis.order((rows, columns), np.arange(rows * columns, dtype=np.int32))

    @nn.nowrap
    def sample(
        self,
        params: dict,
        labels: jax.Array,
        keys: jax.Array,
        settings: Settings,
        guidance_scale: jax.Array | float,
        temperature: jax.Array | float,
        kept: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        """Draws an image's bits [B, N, k] for each label; image i depends on keys[i] alone.

        With `settings.tokens` = m only the first m tokens are written, [B, m, k]: the same ones.

        Args:
          params: of the generator.
          guidance_scale: S; not used where `settings.guided` is False.
          kept: tokens that are given, see `sample_tokens`.
        """
        length, labels = self.trunk.num_tokens, jnp.asarray(labels)
        if not 0 <= settings.tokens <= length:
            expected = f"1 to {length}, the tokens of an image, or 0 for all"
            raise InputError("settings.tokens", str(settings.tokens), expected)
        # Tokens use the folds 0 to L - 1 of an image's key; its order uses L.
        draw = lambda key: jax.random.uniform(jax.random.fold_in(key, length), (length,))
        share = float(settings.order == "random")
        order = permutation.draw_orders(
            share, jnp.zeros(labels.shape), jax.vmap(draw)(keys), self._order()
        )
        return sample_tokens(
            self,
            params,
            labels,
            schedule=settings.unmasking_schedule,
            guidance_scale=guidance_scale if settings.guided else None,
            temperature=temperature,
            noise=token_noise(self.head, keys, settings.unmasking_schedule),
            order=order,
            kept=kept,
            count=settings.tokens,
            attention=settings.attention,
            weights=settings.weights,
        )

    def initialize(self, bits: jax.Array, labels: jax.Array, keys: jax.Array) -> Sums:
        """Touches every parameter, for `init`: arguments as in `loss`."""
        return self.loss(bits, labels, self.draw(keys), 0.0, deterministic=True)


def sample_tokens(
    generator: MaskedBitGenerator,
    params: dict,
    labels: jax.Array,
    *,
    schedule: tuple[int, ...],
    guidance_scale: jax.Array | float | None,
    temperature: jax.Array | float,
    noise: Callable[[jax.Array], jax.Array],
    order: jax.Array,
    kept: tuple[jax.Array, jax.Array] | None = None,
    count: int = 0,
    attention: str = "xla",
    weights: Weights = "float32",
    record: bool = False,
) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
    """Writes images' tokens one after another: one scan over tokens with a KV cache.

    Guidance acts on the head's logits, u + s (c - u), with s = 1 + (S - 1) i / L at token i, so
    none at the first token and never the full S (published).

    Args:
      params: of the generator.
      labels: [B] in 0..num_classes; num_classes is "no class".
      schedule: bits shown at each of the head's steps, summing to n.
      guidance_scale: S; None runs without the unconditional branch.
      temperature: tau.
      noise: maps the index of a token in the order to uniform draws [B, *noise_shape(schedule)].
      order: [B, L], the place of each written token.
      kept: tokens that are given, (bits [B, N, k], keep [B, N] bool with True where given); with
        token shuffling a token is given where all of its parts are.
      count: m, how many tokens are written, of those that are in raster order; 0: all.
      attention: who computes it, of `nn.decode_attention.KINDS`.
      weights: what layers' kernels are kept as, see `nn.decoding.decoding_params`.
      record: also return what was drawn from, for tests.

    Returns:
      bits [B, N or m, k] uint8 in raster order; with `record` also {`z`: [L, B or 2 B, W],
      `logits`: of the head's `sample`, [L, ...]}.
    """
    trunk, head, labels = generator.trunk, generator.head, jnp.asarray(labels)
    check_labels(labels, trunk.num_classes)
    check_scale("temperature", temperature)
    guided = guidance_scale is not None
    if guided:
        check_scale("guidance_scale", guidance_scale)
    rows = (1 + guided) * len(labels)
    head_params = decoding_params(params["head"], trunk.dtype, weights=weights, rows=rows)

    def in_order(tokens):
        return permutation.gather(
            shuffle(tokens, generator.token_grid, generator.patch_size), order
        )

    if kept is not None:
        check_bits(kept[0], len(labels), *generator.token_shape)
        given, keep = in_order(kept[0]), jnp.all(in_order(kept[1][..., None]), axis=-1)

    def draw(z, i):
        guidance = token_guidance(guidance_scale, i, trunk.num_tokens) if guided else None
        bits, logits = head.apply(
            {"params": head_params},
            *(z, guidance, temperature, schedule, noise(i)),
            method=head.sample,
        )
        if kept is not None:
            bits = jnp.where(keep[:, i, None], given[:, i], bits)
        return bits, {"z": z, "logits": logits} if record else None

    bits, recorded = write_tokens(
        trunk, params["trunk"], labels, order, draw, guided, count, attention, weights
    )
    if count:
        return bits
    bits = permutation.scatter(bits, order)
    bits = unshuffle(bits, generator.token_grid, generator.patch_size)
    return (bits, recorded) if record else bits


def token_noise(
    head: nn.Module, keys: jax.Array, schedule: tuple[int, ...]
) -> Callable[[jax.Array], jax.Array]:
    """Noise for `sample_tokens` from one key per example [B]: each gets what its own key gives."""

    def noise(i):
        draw = lambda key: jax.random.uniform(
            jax.random.fold_in(key, i), head.noise_shape(schedule)
        )
        return jax.vmap(draw)(keys)

    return noise
