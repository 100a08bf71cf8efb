"""The causal transformer of masked-bit autoregression (masked-bit paper, section 3.4 and Table 5).

The sequence is one start vector, R copies of the class embedding, then the L tokens in the order
in which they are written. Every position knows its own place in the grid and the place of the
token that comes next, so any order can be followed (RAR). Where the paper is silent, this follows
what the published weights need.
"""

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from einops import rearrange

from bar_jax.mesh import constrain_batch, gathered
from bar_jax.nn.attention import attend, causal
from bar_jax.nn.linear import NORMAL_02, linear, named
from bar_jax.nn.mlp import SwiGLU
from bar_jax.nn.rotary import axial_table, rotate

# Published tables have spare rows: places, sequence indices, and three classes in front.
SPARE_PLACES = 128
SPARE_INDICES = 100
FIRST_CLASS = 3


class KVCache(flax.struct.PyTreeNode):
    """Keys and values of the positions seen so far; rows not written yet are zero.

    Attributes:
      keys, values: [depth, B, S, H, C], S = 1 + R + L.
    """

    keys: jax.Array
    values: jax.Array


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
    """adaLN-modulated attention and SwiGLU, each with a gated residual."""

    heads: int
    dropout: float
    attention_dropout: float
    deterministic: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, condition, cache, rotary, visible, start):
        """One block over a piece of the sequence.

        Args:
          x, condition: [B, S, D].
          cache: None, or (keys, values) [B, S_max, H, C] of this layer.
          rotary: (cos, sin) of the own places and (cos, sin) of the targets, [B, S, C] each.
          visible: bool [S, S], or [S, S_max] with a cache.
          start: index of the piece's first position; with a cache only.

        Returns:
          x [B, S, D], and the cache with the piece written into it.
        """
        batch, length, width = x.shape
        x = constrain_batch(x)
        modulation = linear(
            (6, width),
            ("embed", None, None),
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="adaln",
        )(nn.silu(condition))
        attention_parts, mlp_parts = modulation[:, :, :3], modulation[:, :, 3:]

        shift, scale, gate = (attention_parts[:, :, i] for i in range(3))
        h = nn.RMSNorm(1e-6, dtype=self.dtype, name="attention_norm")(x) * (1 + scale) + shift
        h, cache = self._attention(h, cache, rotary, visible, start)
        h = linear(width, ("heads", None, "embed"), inputs=2, dtype=self.dtype, name="out")(h)
        x += gate * nn.Dropout(self.dropout)(h, self.deterministic)

        shift, scale, gate = (mlp_parts[:, :, i] for i in range(3))
        h = nn.RMSNorm(1e-6, dtype=self.dtype, name="mlp_norm")(x) * (1 + scale) + shift
        h = SwiGLU(self.dropout, dtype=self.dtype, name="mlp")(h, self.deterministic)
        return x + gate * h, cache

    @nn.nowrap
    def _attention(self, x, cache, rotary, visible, start):
        head_dim = x.shape[-1] // self.heads
        qkv = linear(
            (3, self.heads, head_dim),
            ("embed", None, "heads", None),
            dtype=self.dtype,
            name="qkv",
        )(x)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        query = nn.RMSNorm(1e-6, dtype=self.dtype, name="query_norm")(query)
        key = nn.RMSNorm(1e-6, dtype=self.dtype, name="key_norm")(key)
        # Half of the query heads look from where they are, half from where they will write.
        own, target = rotary
        half = self.heads // 2
        query = jnp.concatenate(
            [rotate(query[:, :, :half], *own), rotate(query[:, :, half:], *target)], axis=2
        )
        key = rotate(key, *own)
        if cache is not None:
            keys, values = cache
            keys = jax.lax.dynamic_update_slice_in_dim(keys, key, start, axis=1)
            values = jax.lax.dynamic_update_slice_in_dim(values, value, start, axis=1)
            cache = key, value = keys, values
        rate = 0.0 if self.deterministic else self.attention_dropout
        dropout_key = self.make_rng("dropout") if rate else None
        h = attend(query, key, value, visible, dropout_rate=rate, dropout_key=dropout_key)
        return h, cache


class CausalTransformer(nn.Module):
    """Tokens of n bits in, one vector for the head per token to be predicted out.

    Attributes:
      bits: n, bits of a token (after token shuffling).
      grid: rows and columns of tokens (after token shuffling).
      num_classes: classes 0..num_classes - 1; num_classes itself means "no class".
      class_repeats: R, copies of the class embedding in front.
      output_width: of the head.
      dropout: after the attention's projection and on the MLP's hidden units.
      attention_dropout: on the attention weights (published code declares but never applies it).
      remat: recompute a block's activations in the backward pass instead of keeping them.
      unroll: unroll the loop over layers (faster decoding on CPU, slower compilation).
    """

    bits: int
    grid: tuple[int, int]
    num_classes: int
    width: int
    depth: int
    heads: int
    output_width: int
    class_repeats: int = 32
    dropout: float = 0.0
    attention_dropout: float = 0.0
    remat: bool = False
    unroll: bool = False
    dtype: jnp.dtype = jnp.float32

    @property
    def num_tokens(self) -> int:
        """L, tokens of an image."""
        return self.grid[0] * self.grid[1]

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
        bit_width = math.ceil(self.width / self.bits)
        self.bit_embedding = table("bit_embedding", 3, (None, None), bit_width)
        self.token_proj = linear(self.width, (None, "embed"), dtype=self.dtype)
        self.own_embedding = table("own_place_embedding", length + SPARE_PLACES)
        self.target_embedding = table("target_place_embedding", length + SPARE_PLACES)
        self.index_embedding = table("adaln_index_embedding", length + SPARE_INDICES)
        self.norm = nn.RMSNorm(1e-6, dtype=self.dtype)
        self.output_proj = linear(self.output_width, ("embed", None), dtype=self.dtype)

    def __call__(
        self, bits: jax.Array, labels: jax.Array, order: jax.Array, deterministic: bool = True
    ) -> jax.Array:
        """Vectors for the head, with every token given (training, or checking a sampler).

        Args:
          bits: [B, L, n] in {0, 1}, in the order written.
          labels: [B] integers in 0..num_classes.
          order: [B, L] integers, the place of each written token.
          deterministic: no dropout.

        Returns:
          [B, L, W]: row i serves the prediction of token i of the order.
        """
        places = self.places(order, 0, self.prefix + self.num_tokens)
        x = jnp.concatenate([self._prefix(labels), self.embed_tokens(bits)], axis=1)
        visible = causal(self.prefix + self.num_tokens)
        z, _ = self.forward(x, labels, places, 0, None, visible, deterministic)
        return z[:, self.class_repeats : -1]

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

    def embed_tokens(self, bits: jax.Array) -> jax.Array:
        """[B, S, n] -> [B, S, D]: each bit looked up, all of them concatenated and projected."""
        x = self.bit_embedding.astype(self.dtype)[bits.astype(jnp.int32)]
        return self.token_proj(rearrange(x, "b s n c -> b s (n c)"))

    def _prefix(self, labels: jax.Array) -> jax.Array:
        """[B] -> [B, 1 + R, D]: the start vector and the copies of the class."""
        batch = labels.shape[0]
        start = jnp.broadcast_to(self.start, (batch, 1, self.width))
        classes = jnp.broadcast_to(
            self.embed_class(labels)[:, None], (batch, self.class_repeats, self.width)
        )
        return jnp.concatenate([start, classes], axis=1).astype(self.dtype)

    @nn.compact
    def forward(
        self,
        x: jax.Array,
        labels: jax.Array,
        places: Places,
        start: jax.Array | int,
        cache: KVCache | None,
        visible: jax.Array,
        deterministic: bool = True,
    ) -> tuple[jax.Array, KVCache | None]:
        """Runs a piece of the sequence: [B, S, D] -> [B, S, W].

        Args:
          x: [B, S, D] what the positions hold, without positions.
          start: index in the sequence of the first of them.
          cache: what came before, or None when the piece is the whole sequence.
          visible: bool [S, S], or [S, S_max] with a cache.

        Returns:
          [B, S, W] and the cache with the piece added.
        """
        own_table, target_table = gathered(self.own_embedding), gathered(self.target_embedding)
        x = constrain_batch(x + (own_table[places.own] + target_table[places.target]))
        index = jax.lax.dynamic_slice_in_dim(gathered(self.index_embedding), start, x.shape[1])
        condition = constrain_batch(self.embed_class(labels)[:, None] + index[None])
        cos, sin = axial_table(self.grid, self.width // self.heads, prefix=self.prefix)
        cos, sin = jnp.asarray(cos), jnp.asarray(sin)
        own = cos[places.own], sin[places.own]
        target = cos[places.target], sin[places.target]

        block = CausalBlock
        if self.remat:
            block = nn.remat(CausalBlock, prevent_cse=False)
        blocks = nn.scan(
            block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, 0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=self.depth,
            unroll=self.depth if self.unroll else 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(
            self.heads,
            self.dropout,
            self.attention_dropout,
            deterministic,
            self.dtype,
            name="blocks",
        )
        layers = None if cache is None else (cache.keys, cache.values)
        x, layers = blocks(
            x.astype(self.dtype),
            condition.astype(self.dtype),
            layers,
            (own, target),
            visible,
            start,
        )
        z = self.output_proj(self.norm(x))
        return z, None if cache is None else KVCache(*layers)

    def prefill(self, labels: jax.Array, order: jax.Array) -> KVCache:
        """The cache after the first R positions: all of the prefix but the last class copy."""
        head_dim, length = self.width // self.heads, self.prefix + self.num_tokens
        empty = jnp.zeros((self.depth, labels.shape[0], length, self.heads, head_dim), self.dtype)
        piece = self.class_repeats
        x = self._prefix(labels)[:, :piece]
        places = self.places(order, 0, piece)
        visible = jnp.arange(length)[None] <= jnp.arange(piece)[:, None]
        _, cache = self.forward(x, labels, places, 0, KVCache(empty, empty), visible)
        return cache

    def decode(
        self, x: jax.Array, labels: jax.Array, order: jax.Array, i: jax.Array, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """One more position, the one that predicts token i of the order.

        Args:
          x: [B, D] what it holds: the class embedding for i = 0, else token i - 1.

        Returns:
          [B, W] for the head, and the grown cache.
        """
        start = self.class_repeats + i
        places = self.places(order, start, 1)
        visible = jnp.arange(cache.keys.shape[2])[None] <= start
        z, cache = self.forward(x[:, None], labels, places, start, cache, visible)
        return z[:, 0], cache
