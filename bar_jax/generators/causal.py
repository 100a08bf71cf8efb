"""The causal transformer of masked-bit autoregression (masked-bit paper, section 3.4 and Table 5).

The sequence is one start vector, R copies of the class embedding, then the L tokens in the order
in which they are written. Every position knows its own place in the grid and the place of the
token that comes next, so any order can be followed (RAR). Where the paper is silent, this follows
what the published weights need.
"""

import functools
import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from einops import rearrange

from bar_jax.nn.attention import attend
from bar_jax.nn.decode_attention import LayerCache, attend_cached, empty_cache
from bar_jax.nn.decoding import layers
from bar_jax.nn.linear import NORMAL_02, linear, lookup, named
from bar_jax.nn.mlp import SwiGLU
from bar_jax.nn.rotary import axial_table, rotate
from bar_jax.runtime.mesh import constrain_batch, gathered

# Published tables have spare rows: places, sequence indices, and three classes in front.
SPARE_PLACES = 128
SPARE_INDICES = 100
FIRST_CLASS = 3


class Places(flax.struct.PyTreeNode):
    """Where each position of a piece of the sequence stands; rows of the position tables.

    Rows 0..R are the start vector and the class copies, row 1 + R + p is place p of the grid.

    Attributes:
      own: [B, S] the position's own row.
      target: [B, S] the row of the token to be predicted next.
    """

    own: jax.Array
    target: jax.Array


class CausalBlock(nn.Module):
    """adaLN-modulated attention and SwiGLU, each with a gated residual.

    Dropout acts when a dropout rng is given.
    """

    width: int
    heads: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        dense = functools.partial(linear, dtype=self.dtype)
        norm = functools.partial(nn.RMSNorm, 1e-6)
        head_dim = self.width // self.heads
        zeros = nn.initializers.zeros
        self.adaln = dense((6, self.width), ("embed", None, None), kernel_init=zeros)
        self.attention_norm, self.mlp_norm = norm(), norm()
        self.qkv = dense((3, self.heads, head_dim), ("embed", None, "heads", None))
        self.query_norm, self.key_norm = norm(), norm()
        self.out = dense(self.width, ("heads", None, "embed"), inputs=2)
        self.mlp = SwiGLU(self.dropout, dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def __call__(
        self, x: jax.Array, condition: jax.Array, rotary: tuple[tuple[jax.Array, ...], ...]
    ) -> tuple[jax.Array, None]:
        """One block over the whole sequence.

        Args:
          x, condition: [B, S, D].
          rotary: (cos, sin) of the own places and (cos, sin) of the targets, [B, S, C] each.

        Returns:
          [B, S, D], and what `nn.scan` stacks: nothing.
        """
        x, _ = self._modulated(constrain_batch(x), self.modulate(condition), rotary)
        return x, None

    def modulate(self, condition: jax.Array) -> jax.Array:
        """[..., D] -> [..., 6, D]: shift, scale, gate of the attention, then of the MLP."""
        return self.adaln(nn.silu(condition))

    def extend(
        self,
        x: jax.Array,
        modulation: jax.Array,
        rotary: tuple[tuple[jax.Array, ...], ...],
        cache: LayerCache,
        start: jax.Array | int,
    ) -> tuple[jax.Array, LayerCache]:
        """One block over a piece of the sequence that follows what the cache holds.

        Args:
          x: [B, S, D].
          modulation: [B, S, 6, D], as `modulate` gives it.
          cache: of this layer.
          start: index of the piece's first position.

        Returns:
          x [B, S, D], and the cache with the piece written into it.
        """
        return self._modulated(x, modulation, rotary, cache, start)

    def _modulated(self, x, modulation, rotary, cache=None, start=0):
        parts = [modulation[:, :, i] for i in range(6)]
        shift, scale, gate = parts[:3]
        h = self.attention_norm(x) * (1 + scale) + shift
        h, cache = self._attention(h, rotary, cache, start)
        training = self.has_rng("dropout")
        x += gate * self.drop(self.out(h), deterministic=not training)

        shift, scale, gate = parts[3:]
        h = self.mlp_norm(x) * (1 + scale) + shift
        return x + gate * self.mlp(h), cache

    def _attention(self, x, rotary, cache, start):
        qkv = self.qkv(x)
        query, key, value = self.query_norm(qkv[:, :, 0]), self.key_norm(qkv[:, :, 1]), qkv[:, :, 2]
        # Half of the query heads look from where they are, half from where they will write.
        own, target = rotary
        half = self.heads // 2
        query = jnp.concatenate(
            [rotate(query[:, :, :half], *own), rotate(query[:, :, half:], *target)], axis=2
        )
        query, key = (x.astype(self.dtype) for x in (query, rotate(key, *own)))
        if cache is not None:
            return attend_cached(query, key, value, cache, start, causal=True)
        rate = self.attention_dropout if self.has_rng("dropout") else 0.0
        dropout_key = self.make_rng("dropout") if rate else None
        h = attend(query, key, value, causal=True, dropout_rate=rate, dropout_key=dropout_key)
        return h, None


class CausalTransformer(nn.Module):
    """Tokens in, one vector for the head per token to be predicted out.

    Tokens have n bits or d real numbers.

    Attributes:
      bits: n, bits of a token (after token shuffling); not used where there are channels.
      grid: rows and columns of tokens (after token shuffling); of tokens without a place in an
        image the length of the sequence alone.
      num_classes: classes 0..num_classes - 1; num_classes itself means "no class".
      class_repeats: R, copies of the class embedding in front.
      output_width: of the head.
      dropout: after the attention's projection and on the MLP's hidden units.
      attention_dropout: on the attention weights (published code declares but never applies it).
      remat: keep of a block its input alone for the gradient, see `nn.remat`.
      channels: d, numbers of a real-valued token; 0: tokens are bits.
    """

    bits: int
    grid: tuple[int, ...]
    num_classes: int
    width: int
    depth: int
    heads: int
    output_width: int
    class_repeats: int = 32
    dropout: float = 0.0
    attention_dropout: float = 0.0
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    channels: int = 0

    @property
    def num_tokens(self) -> int:
        """L, tokens of an image."""
        return math.prod(self.grid)

    @property
    def prefix(self) -> int:
        """1 + R, positions in front of the first token."""
        return 1 + self.class_repeats

    def setup(self):
        length = self.num_tokens

        def table(name, rows, axes=(None, "embed"), width=self.width):
            return self.param(name, named(NORMAL_02, *axes), (rows, width))

        self.start = self.param("start", named(NORMAL_02, "embed"), (self.width,))
        self.class_embedding = table("class_embedding", self.num_classes + FIRST_CLASS + 1)
        if not self.channels:
            bit_width = math.ceil(self.width / self.bits)
            self.bit_embedding = table("bit_embedding", 3, (None, None), bit_width)
        self.token_proj = linear(self.width, (None, "embed"), dtype=self.dtype)
        self.own_embedding = table("own_place_embedding", length + SPARE_PLACES)
        self.target_embedding = table("target_place_embedding", length + SPARE_PLACES)
        self.index_embedding = table("adaln_index_embedding", length + SPARE_INDICES)
        self.norm = nn.RMSNorm(1e-6)
        self.output_proj = linear(self.output_width, ("embed", None), dtype=self.dtype)
        sizes = (self.width, self.heads, self.dropout, self.attention_dropout, self.dtype)
        self.blocks = layers(self, CausalBlock, sizes, self.depth)

    def __call__(self, tokens: jax.Array, labels: jax.Array, order: jax.Array) -> jax.Array:
        """Vectors for the head, with every token given (training, or checking a sampler).

        With a dropout rng there is dropout.

        Args:
          tokens: [B, L, n] in {0, 1}, or [B, L, d]; in the order written.
          labels: [B] integers in 0..num_classes.
          order: [B, L] integers, the place of each written token.

        Returns:
          [B, L, W]: row i serves the prediction of token i of the order.
        """
        places = self.places(order, 0, self.prefix + self.num_tokens)
        x = jnp.concatenate([self._prefix(labels), self.embed_tokens(tokens)], axis=1)
        condition = constrain_batch(self._condition(labels, 0, x.shape[1]))
        x, _ = self.blocks(self._positioned(x, places), condition, self._rotary(places))
        return self._output(x)[:, self.class_repeats : -1]

    def places(self, order: jax.Array, start: jax.Array | int, length: int) -> Places:
        """Table rows of the positions start..start + length - 1 of the sequence."""
        batch = order.shape[0]
        grid_rows = self.prefix + order
        prefix = jnp.broadcast_to(jnp.arange(self.prefix), (batch, self.prefix))
        first = jnp.broadcast_to(grid_rows[:, :1], (batch, self.class_repeats))
        own = jnp.concatenate([prefix, grid_rows], axis=1)
        # The whole prefix aims at the first token, the last token at itself.
        target = jnp.concatenate([first, grid_rows, grid_rows[:, -1:]], axis=1)
        piece = lambda rows: jax.lax.dynamic_slice_in_dim(rows, start, length, axis=1)
        return Places(own=piece(own), target=piece(target))

    def embed_class(self, labels: jax.Array) -> jax.Array:
        """[B] -> [B, D] float32."""
        return gathered(self.class_embedding)[labels + FIRST_CLASS]

    def embed_tokens(self, tokens: jax.Array) -> jax.Array:
        """[B, S, n or d] -> [B, S, D]: a projection, of bits after each of them is looked up."""
        if self.channels:
            return self.token_proj(tokens.astype(self.dtype))
        x = lookup(self.bit_embedding, tokens).astype(self.dtype)
        return self.token_proj(rearrange(x, "b s n c -> b s (n c)"))

    def _prefix(self, labels: jax.Array) -> jax.Array:
        """[B] -> [B, 1 + R, D]: the start vector and the copies of the class."""
        batch = labels.shape[0]
        start = jnp.broadcast_to(self.start, (batch, 1, self.width))
        classes = jnp.broadcast_to(
            self.embed_class(labels)[:, None], (batch, self.class_repeats, self.width)
        )
        return jnp.concatenate([start, classes], axis=1)

    def _positioned(self, x: jax.Array, places: Places) -> jax.Array:
        """Adds both position embeddings: [B, S, D] -> [B, S, D]."""
        own, target = gathered(self.own_embedding), gathered(self.target_embedding)
        x = x + (own[places.own] + target[places.target])
        return constrain_batch(x)

    def _condition(self, labels: jax.Array, start: jax.Array | int, length: int) -> jax.Array:
        """What modulates positions start..start + length - 1: [R] -> [R, length, D]."""
        index = jax.lax.dynamic_slice_in_dim(gathered(self.index_embedding), start, length)
        return self.embed_class(labels)[:, None] + index[None]

    def _rotary(self, places: Places) -> tuple[tuple[jax.Array, ...], ...]:
        """(cos, sin) [B, S, C] of the own places, and of the targets."""
        tables = axial_table(self.grid, self.width // self.heads, prefix=self.prefix)
        tables = [jnp.asarray(table) for table in tables]
        return tuple(tuple(t[rows] for t in tables) for rows in (places.own, places.target))

    def _output(self, x: jax.Array) -> jax.Array:
        """[B, S, D] -> [B, S, W] for the head."""
        return self.output_proj(self.norm(x))

    # Decoding, on parameters that `nn.decoding.decoding_params` has laid out.

    def modulations(
        self, labels: jax.Array, start: jax.Array | int, length: int
    ) -> tuple[jax.Array, ...]:
        """Every layer's adaLN vectors, which depend on class and index alone.

        Args:
          labels: [R] integers in 0..num_classes.
          start, length: of the positions in the sequence.

        Returns:
          An array [R, length, 6, D] for every layer.
        """
        condition = self._condition(labels, start, length)
        return tuple(block.modulate(condition) for block in self.blocks)

    def prefill(
        self,
        labels: jax.Array,
        order: jax.Array,
        modulations: tuple[jax.Array, ...],
        tokens: int,
        attention: str,
    ) -> tuple[LayerCache, ...]:
        """The cache after the first R positions: all of the prefix but the last class copy.

        Args:
          modulations: of positions 0..R - 1, an array [B, R, 6, D] for every layer.
          tokens: how many are going to be written.
          attention: who computes it, of `nn.decode_attention.KINDS`.

        Returns:
          A cache for every layer.
        """
        length, head_dim = self.prefix + tokens, self.width // self.heads
        sizes = labels.shape[0], length, self.heads, head_dim
        cache = (empty_cache(attention, *sizes, self.dtype),) * self.depth
        x = self._prefix(labels)[:, : self.class_repeats]
        return self._extend(x, order, modulations, cache, 0)[1]

    def decode(
        self,
        x: jax.Array,
        order: jax.Array,
        modulations: tuple[jax.Array, ...],
        cache: tuple[LayerCache, ...],
        i: jax.Array,
    ) -> tuple[jax.Array, tuple[LayerCache, ...]]:
        """One more position, the one that predicts token i of the order.

        Args:
          x: [B, D] what it holds: the class embedding for i = 0, else token i - 1.
          modulations: of position R + i, an array [B, 1, 6, D] for every layer.

        Returns:
          [B, W] for the head, and the grown cache.
        """
        x, cache = self._extend(x[:, None], order, modulations, cache, self.class_repeats + i)
        return self._output(x)[:, 0], cache

    def _extend(self, x, order, modulations, cache, start):
        places = self.places(order, start, x.shape[1])
        x, rotary = self._positioned(x, places), self._rotary(places)
        written = []
        for block, modulation, of_layer in zip(self.blocks, modulations, cache, strict=True):
            x, of_layer = block.extend(x, modulation, rotary, of_layer, start)
            written.append(of_layer)
        return x, tuple(written)
