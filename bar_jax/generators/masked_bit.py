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
from bar_jax.generators.request import Request
from bar_jax.generators.shuffle import shuffle, unshuffle
from bar_jax.generators.writing import write_tokens
from bar_jax.losses import Sums
from bar_jax.nn.decoding import decoding_params
from bar_jax.nn.guidance import drop_labels
from bar_jax.runtime.arguments import check_bits, check_labels
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
            labels = drop_labels(labels, draws.label, self.label_dropout, self.trunk.num_classes)
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
    def sample(self, params: dict, request: Request) -> jax.Array:
        """Draws an image's bits [B, N, k] for each label; image i depends on keys[i] alone.

        With `settings.tokens` = m only the first m tokens are written, [B, m, k]: the same ones.
        """
        length, settings = self.trunk.num_tokens, request.settings
        if not 0 <= settings.tokens <= length:
            expected = f"1 to {length}, the tokens of an image, or 0 for all"
            raise InputError("settings.tokens", str(settings.tokens), expected)
        # Tokens use the folds 0 to L - 1 of an image's key; its order uses L.
        draw = lambda key: jax.random.uniform(jax.random.fold_in(key, length), (length,))
        share, zeros = float(settings.order == "random"), jnp.zeros(request.labels.shape)
        drawn = jax.vmap(draw)(request.keys)
        order = permutation.draw_orders(share, zeros, drawn, self._order())
        noise = token_noise(self.head, request.keys, settings.unmasking_schedule)
        return sample_tokens(self, params, request, order, noise)

    def initialize(self, bits: jax.Array, labels: jax.Array, keys: jax.Array) -> Sums:
        """Touches every parameter, for `init`: arguments as in `loss`."""
        return self.loss(bits, labels, self.draw(keys), 0.0, deterministic=True)


# Index of a token in the order -> uniform draws [B, *noise_shape(schedule)] of the head.
Noise = Callable[[jax.Array], jax.Array]


def sample_tokens(
    generator: MaskedBitGenerator, params: dict, request: Request, order: jax.Array, noise: Noise
) -> jax.Array:
    """Writes images' tokens one after another: one scan over tokens with a KV cache.

    Guidance acts on the head's logits; its scale at token i of L is `request.guidance(i, L)`, so
    that the full S is never reached (published).

    Args:
      order: [B, L], the place of each written token.

    Returns:
      bits [B, N, k] uint8 in raster order; of m = `settings.tokens` alone [B, m, k] as written.
    """
    nothing = lambda z, logits: None
    bits, _ = _write(generator, params, request, order, noise, nothing)
    return bits if request.settings.tokens else _in_raster_order(generator, bits, order)


def record_tokens(
    generator: MaskedBitGenerator, params: dict, request: Request, order: jax.Array, noise: Noise
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """As `sample_tokens`, of whole images, with what they were drawn from.

    Returns:
      bits [B, N, k], and {`z`: [L, B or 2 B, W], `logits`: of the head's `sample`, [L, ...]}.
    """
    record = lambda z, logits: {"z": z, "logits": logits}
    bits, recorded = _write(generator, params, request, order, noise, record)
    return _in_raster_order(generator, bits, order), recorded


def _write(generator, params, request, order, noise, record) -> tuple[jax.Array, Any]:
    """Tokens [B, m, n] in the order in which they are written, and what is recorded of each."""
    trunk, head, settings = generator.trunk, generator.head, request.settings
    request.check(trunk.num_classes)
    head_params = decoding_params(
        params["head"], trunk.dtype, weights=settings.weights, rows=request.rows
    )
    if request.kept is not None:
        kept, mask = request.kept.tokens, request.kept.mask[..., None]
        check_bits(kept, *request.labels.shape, *generator.token_shape)
        kept, mask = (_as_written(generator, x, order) for x in (kept, mask))
        mask = jnp.all(mask, axis=-1)

    def draw(z, i):
        guidance = request.guidance(i, trunk.num_tokens)
        bits, logits = head.apply(
            {"params": head_params},
            *(z, guidance, request.temperature, settings.unmasking_schedule, noise(i)),
            method=head.sample,
        )
        if request.kept is not None:
            bits = jnp.where(mask[:, i, None], kept[:, i], bits)
        return bits, record(z, logits)

    return write_tokens(trunk, params["trunk"], request, order, draw)


def _as_written(generator, tokens, order) -> jax.Array:
    """[B, N, k] in raster order -> [B, L, n] in the order in which tokens are written."""
    return permutation.gather(shuffle(tokens, generator.token_grid, generator.patch_size), order)


def _in_raster_order(generator, tokens, order) -> jax.Array:
    """The way back: [B, L, n] -> [B, N, k]."""
    tokens = permutation.scatter(tokens, order)
    return unshuffle(tokens, generator.token_grid, generator.patch_size)


def token_noise(head: nn.Module, keys: jax.Array, schedule: tuple[int, ...]) -> Noise:
    """Noise for `sample_tokens` from one key per example [B]: each gets what its own key gives."""

    def noise(i):
        draw = lambda key: jax.random.uniform(
            jax.random.fold_in(key, i), head.noise_shape(schedule)
        )
        return jax.vmap(draw)(keys)

    return noise
