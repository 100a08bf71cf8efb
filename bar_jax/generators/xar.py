"""xAR: block-causal flow matching over cells of tokens, each with its own noise level.

The host that the basis paper builds on (Ren et al. 2025, "Beyond next-token"; basis paper, eq. 2).
The sequence is a number of cells, squares of neighbouring tokens, in raster order inside a cell. An
encoder and a decoder transformer see the noisy cells up to their own and predict the flow. With a
basis the cells are consecutive rows of y, and all else stays.
"""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bar_jax.bases import make_basis
from bar_jax.bases.kind import Shape
from bar_jax.bases.permutation import cells
from bar_jax.generators import xar_sampler
from bar_jax.generators.basis import BasisGenerator, make_basis_generator
from bar_jax.generators.kind import GeneratorKind, check_heads, written_grid, written_width
from bar_jax.generators.prediction import Prediction
from bar_jax.generators.request import Request
from bar_jax.nn.attention import attend
from bar_jax.nn.decode_attention import attend_cached
from bar_jax.nn.decoding import layers
from bar_jax.nn.linear import NORMAL_02, XAVIER, linear, named
from bar_jax.nn.mlp import GatedGeluMLP
from bar_jax.nn.rotary import axial_table, rotate
from bar_jax.nn.time import TimeEmbedding, time_index
from bar_jax.runtime.arguments import check_labels, check_numbers
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.mesh import constrain_batch, gathered


class Draws(flax.struct.PyTreeNode):
    """Random draws of one training step.

    Attributes:
      time: [B, cells] float32 in (0, 1).
      noise: [B, N, d] standard normal.
    """

    time: jax.Array
    noise: jax.Array


class XARBlock(nn.Module):
    """adaLN-modulated attention and gated MLP, each with a gated residual."""

    width: int
    heads: int
    dropout: float
    attention_dropout: float
    dtype: jnp.dtype

    def setup(self):
        dense = functools.partial(linear, kernel_init=XAVIER, dtype=self.dtype)
        norm = functools.partial(nn.RMSNorm, 1e-6, use_scale=False)
        self.attention_norm, self.mlp_norm = norm(), norm()
        self.adaln = dense((6, self.width), ("embed", None, None))
        self.qkv = dense((3, self.heads, self.width // self.heads), ("embed", None, "heads", None))
        self.out = dense(self.width, ("heads", None, "embed"), inputs=2)
        self.mlp = GatedGeluMLP(self.dropout, XAVIER, self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x, condition, rotary, visible) -> tuple[jax.Array, None]:
        """One block over the whole sequence.

        Args:
          x: [B, N, D].
          condition: [B, cells, D], class and time of each cell.
          rotary: cos, sin [1, N, C].
          visible: bool [N, N], which keys a query sees.

        Returns:
          [B, N, D], and what `nn.scan` stacks: nothing.
        """
        x, _ = self._modulated(constrain_batch(x), self.modulate(condition), rotary, visible)
        return x, None

    def modulate(self, condition: jax.Array) -> jax.Array:
        """[..., D] -> [..., 6, D]: gates, scales and shifts of attention and MLP in turn."""
        return self.adaln(nn.silu(condition))

    def extend(self, x, modulation, rotary, cache, start):
        """One block over a cell that follows what the cache holds.

        Args:
          x: [B, n, D].
          modulation: [B, 1, 6, D], as `modulate` gives it.
          cache: of this layer; None: the cell sees itself alone.
          start: index of the cell's first token.

        Returns:
          x [B, n, D], and the cache with the cell written into it.
        """
        return self._modulated(x, modulation, rotary, None, cache, start)

    def _modulated(self, x, modulation, rotary, visible, cache=None, start=0):
        modulation = jnp.repeat(modulation, x.shape[1] // modulation.shape[1], axis=1)
        gates, scales, shifts = (modulation[:, :, i : i + 2] for i in (0, 2, 4))
        h = self.attention_norm(x) * (1 + scales[:, :, 0]) + shifts[:, :, 0]
        h, cache = self._attention(h, rotary, visible, cache, start)
        training = self.has_rng("dropout")
        x += gates[:, :, 0] * self.drop(self.out(h), deterministic=not training)
        h = self.mlp_norm(x) * (1 + scales[:, :, 1]) + shifts[:, :, 1]
        return x + gates[:, :, 1] * self.mlp(h), cache

    def _attention(self, x, rotary, visible, cache, start):
        qkv = self.qkv(x)
        query, key = (rotate(qkv[:, :, i], *rotary) for i in range(2))
        value = qkv[:, :, 2]
        if cache is not None:
            return attend_cached(query, key, value, cache, start)
        rate = self.attention_dropout if self.has_rng("dropout") else 0.0
        dropout_key = self.make_rng("dropout") if rate else None
        h = attend(query, key, value, visible, dropout_rate=rate, dropout_key=dropout_key)
        return h, None


class XAR(nn.Module):
    """Noisy tokens of d channels in, their flow eps - y out.

    Attributes:
      channels: d, numbers of a token.
      grid: rows and columns of tokens.
      cell_size: tokens on a side of a cell.
      num_classes: classes 0..num_classes - 1; num_classes itself means "no class".
      depth: layers of the encoder, and of the decoder.
      decoder_depth: layers of the decoder, if not the same.
      dropout: after the attention's projection and on the MLP's hidden units.
      attention_dropout: on the attention weights.
      shared_time: one time for all cells of an image (basis paper, Algorithm 1) or one each.
      time: distribution of times, `logit_normal` (published) or `uniform` (Algorithm 1).
      remat: keep of a block its input alone for the gradient, see `nn.remat`.
    """

    channels: int
    grid: tuple[int, int]
    cell_size: int
    num_classes: int
    width: int
    depth: int
    heads: int
    decoder_depth: int | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    shared_time: bool = False
    time: str = "logit_normal"
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @property
    def length(self) -> int:
        """N, tokens of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def cell(self) -> int:
        """Tokens of a cell."""
        return self.cell_size**2

    @property
    def cells(self) -> int:
        """Autoregressive steps."""
        return self.length // self.cell

    @property
    def native_order(self) -> np.ndarray:
        """[N] raster index of the first, second, ... token of the sequence."""
        return cells(Shape(self.grid, self.cell_size))

    def setup(self):
        dense = functools.partial(linear, kernel_init=XAVIER, dtype=self.dtype)
        norm = functools.partial(nn.RMSNorm, 1e-6)
        table = lambda name, rows: self.param(
            name, named(NORMAL_02, None, "embed"), (rows, self.width)
        )
        sizes = (self.width, self.heads, self.dropout, self.attention_dropout, self.dtype)
        self.class_embedding = table("class_embedding", self.num_classes + 1)
        self.encoder_positions = table("encoder_positions", self.length)
        self.decoder_positions = table("decoder_positions", self.length)
        self.time_embedding = TimeEmbedding(self.width, XAVIER, self.dtype)
        self.in_proj, self.in_norm = dense(self.width, (None, "embed")), norm()
        self.encoder_blocks = layers(self, XARBlock, sizes, self.depth, "encoder_blocks")
        self.encoder_norm, self.decoder_proj = norm(), dense(self.width, ("embed", None))
        decoder_depth = self.decoder_depth or self.depth
        self.decoder_blocks = layers(self, XARBlock, sizes, decoder_depth, "decoder_blocks")
        self.decoder_norm, self.out_proj = norm(), dense(self.channels, ("embed", None))

    def __call__(self, x: jax.Array, labels: jax.Array, time: jax.Array) -> jax.Array:
        """The flow of every noisy token.

        Args:
          x: [B, N, d] noisy tokens.
          labels: [B] integers in 0..num_classes.
          time: [B, cells] in [0, 1].

        Returns:
          [B, N, d] float32.
        """
        condition = constrain_batch(self.condition(labels, time_index(time)))
        rotary, visible = self.rotary(), self.block_causal()
        x = self.embed(x)
        x, _ = self.encoder_blocks(x, condition, rotary, visible)
        x, _ = self.decoder_blocks(self.decoder_input(x), condition, rotary, visible)
        return self.flow(x)

    def condition(self, labels: jax.Array, index: jax.Array) -> jax.Array:
        """Classes [B] and time indices [B, T] -> [B, T, D]."""
        of_class = gathered(self.class_embedding)[labels]
        return of_class[:, None] + self.time_embedding(index)

    def embed(self, x: jax.Array, start: jax.Array | int = 0) -> jax.Array:
        """Tokens start, start + 1, ...: [B, n, d] -> [B, n, D], what goes into the encoder."""
        return self.in_norm(self._positioned(self.in_proj(x), self.encoder_positions, start))

    def decoder_input(self, x: jax.Array, start: jax.Array | int = 0) -> jax.Array:
        """What the encoder's blocks gave -> what goes into the decoder's."""
        return self._positioned(
            self.decoder_proj(self.encoder_norm(x)), self.decoder_positions, start
        )

    def flow(self, x: jax.Array) -> jax.Array:
        """What the decoder's blocks gave -> [B, n, d] float32."""
        return self.out_proj(self.decoder_norm(x)).astype(jnp.float32)

    def _positioned(self, x, table, start):
        rows = jax.lax.dynamic_slice_in_dim(gathered(table), start, x.shape[1])
        return constrain_batch(x + rows[None])

    @nn.nowrap
    def rotary(self) -> tuple[jax.Array, jax.Array]:
        """cos, sin [1, N, C]: each token turns by its place in the grid, cell after cell."""
        tables = axial_table(self.grid, self.width // self.heads)
        return tuple(jnp.asarray(table[self.native_order])[None] for table in tables)

    @nn.nowrap
    def block_causal(self) -> np.ndarray:
        """bool [N, N]: a token sees the cells up to its own."""
        cell = np.arange(self.length) // self.cell
        return cell[:, None] >= cell[None]

    # Decoding, on parameters that `nn.decoding.decoding_params` has laid out.

    def modulations(self, labels: jax.Array, index: jax.Array) -> tuple[jax.Array, ...]:
        """adaLN vectors of every layer, encoder's and decoder's: [R] and [T] -> [R, T, 6, D]."""
        condition = self.condition(labels, jnp.broadcast_to(index, (labels.size, *index.shape)))
        blocks = (*self.encoder_blocks, *self.decoder_blocks)
        return tuple(block.modulate(condition) for block in blocks)

    def extend(self, x, modulations, cache, start):
        """The flow of a cell that follows those in the cache.

        Args:
          x: [B, n, d] noisy tokens of the cell.
          modulations: of this time, an array [B, 6, D] for every layer.
          cache: a `LayerCache` for every layer; None: this is the first cell, and no cache is
            written.
          start: index of the cell's first token.

        Returns:
          [B, n, d] float32, and the cache with this cell in it.
        """
        n, cache_of = x.shape[1], cache or [None] * len(modulations)
        piece = lambda table: jax.lax.dynamic_slice_in_dim(table, start, n, axis=1)
        rotary = tuple(piece(table) for table in self.rotary())
        x, written = self.embed(x, start), []
        for i, block in enumerate((*self.encoder_blocks, *self.decoder_blocks)):
            if i == self.depth:
                x = self.decoder_input(x, start)
            x, kept = block.extend(x, modulations[i][:, None], rotary, cache_of[i], start)
            written.append(kept)
        return self.flow(x), cache if cache is None else tuple(written)

    # Training.

    def draw(self, keys: jax.Array, batch_key: jax.Array | None = None) -> Draws:
        """Draws for a training step, each example's from its own key [B]; `batch_key` of none."""
        del batch_key
        size = (1 if self.shared_time else self.cells) + self.length * self.channels
        normal = jax.vmap(lambda key: jax.random.normal(key, (size,)))(keys)
        noise = normal[:, -self.length * self.channels :]
        z = normal[:, : -self.length * self.channels]
        # The normal distribution function makes a uniform draw of a normal one.
        time = jax.nn.sigmoid(z) if self.time == "logit_normal" else jax.scipy.stats.norm.cdf(z)
        return Draws(
            time=jnp.broadcast_to(time, (keys.shape[0], self.cells)),
            noise=noise.reshape(-1, self.length, self.channels),
        )

    def predict(self, y: jax.Array, labels: jax.Array, draws: Draws) -> Prediction:
        """Noises a sequence and predicts its flow.

        Args:
          y: [B, N, d].
          labels: [B] in 0..num_classes.
        """
        check_labels(labels, self.num_classes)
        check_numbers("y", y, labels.shape[0], self.length, self.channels)
        noisy = noised(y, draws, self.cell)
        flow = self(noisy, labels, draws.time)
        clean = draws.noise - flow
        squares = jnp.sum((clean - y) ** 2, axis=(1, 2))
        return Prediction(
            loss=squares,
            weight=jnp.full_like(squares, y[0].size),
            variational_loss=None,
            clean=clean[None],
            snr=jnp.ones((1, y.shape[0])),
        )

    def initialize(self, y: jax.Array, labels: jax.Array, keys: jax.Array) -> Prediction:
        """Touches every parameter, for `init`: arguments as in `predict`."""
        return self.predict(y, labels, self.draw(keys))

    @nn.nowrap
    def sample(self, params: dict, request: Request) -> jax.Array:
        """Draws a sequence [B, N, d] for each label; image i depends on keys[i] alone."""
        return xar_sampler.sample(self, params, request)


def noised(y: jax.Array, draws: Draws, cell: int) -> jax.Array:
    """(1 - t) y + t eps, with the time of each token's cell: [B, N, d]."""
    t = jnp.repeat(draws.time, cell, axis=1)[..., None]
    return (1 - t) * y + t * draws.noise


def _make(config: ConfigDict, remat: bool) -> BasisGenerator:
    generator = config.model.generator
    host = XAR(
        channels=written_width(config),
        grid=written_grid(config),
        cell_size=generator.cell_size,
        num_classes=config.data.num_classes,
        width=generator.width,
        depth=generator.depth,
        heads=generator.heads,
        dropout=generator.dropout,
        attention_dropout=generator.attention_dropout,
        shared_time=generator.shared_time,
        time=generator.time,
        remat=remat,
        dtype=jnp.dtype(config.dtype),
    )
    return make_basis_generator(config, host)


def _check(config: ConfigDict, rows: int, length: int) -> None:
    check_heads(config)
    if length != rows**2:
        found = f"{make_basis(config).fixed!r} with {length} rows for {rows**2} tokens"
        expected = "as many rows as tokens for xar; mar and causal take any number"
        raise InputError("model.basis.kind", found, expected)
    cell_size = config.model.generator.cell_size
    if rows % cell_size:
        expected = f"a divisor of the grid, {rows} x {rows}"
        raise InputError("model.generator.cell_size", f"{cell_size}", expected)


KIND = GeneratorKind(
    make=_make,
    writes_numbers=True,
    heads=("flow",),
    fields=("cell_size", "time", "shared_time"),
    sampling_fields=("sampler", "steps"),
    queries=lambda config: config.model.generator.cell_size**2,
    check=_check,
)
