"""MAR: masked autoregression of real-valued tokens (Li et al. 2024, without Vector Quantization).

A bidirectional encoder sees copies of the class and the tokens that are known, a decoder the same
with mask tokens in the places of the others, and a diffusion head turns the decoder's vectors
into tokens. Where the paper is silent, this follows what the published weights need.

Inside, tokens stand in the order in which they are revealed, so that the known ones are the first
of each example: one static number of encoder slots serves every number of known tokens.
"""

import functools
import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bar_jax.bases import permutation
from bar_jax.generators import mar_sampler, mask_ratio
from bar_jax.generators.basis import BasisGenerator, make_basis_generator
from bar_jax.generators.bidirectional import NORM_EPS, Transformer
from bar_jax.generators.denoising import predict_tokens
from bar_jax.generators.kind import (
    GeneratorKind,
    check_heads,
    rows_of_basis,
    written_width,
)
from bar_jax.generators.prediction import Prediction
from bar_jax.generators.request import Request
from bar_jax.heads import diffusion, make_head
from bar_jax.nn.linear import NORMAL_02, XAVIER, linear, named
from bar_jax.runtime.arguments import check_labels, check_numbers
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.mesh import gathered


class Draws(flax.struct.PyTreeNode):
    """Random draws of one training step, one row per example.

    Attributes:
      mask_ratio: [B] share of tokens to hide; the first example's is used for all (published).
      order: [B, N] int32, a permutation of the tokens; the first of it are hidden.
      head: times [B, R, N] and noise [B, R, N, d].
    """

    mask_ratio: jax.Array
    order: jax.Array
    head: diffusion.Draws


class MAR(nn.Module):
    """p(tokens | class), some tokens at a time and in any order.

    Attributes:
      length: N, tokens of an image.
      num_classes: classes 0..num_classes - 1; num_classes itself means "no class".
      encoder, decoder: transformers.
      head: from the decoder's output to one token of d channels.
      class_repeats: copies of the class embedding in front.
      mask_ratio_min: least share of tokens that training hides.
      shared_time: one noise level per image and draw, not one per token.
    """

    length: int
    num_classes: int
    encoder: Transformer
    decoder: Transformer
    head: diffusion.DiffusionHead
    class_repeats: int = 64
    mask_ratio_min: float = 0.7
    shared_time: bool = False
    dtype: jnp.dtype = jnp.float32

    @property
    def prefix(self) -> int:
        """Positions in front of the first token: the copies of the class."""
        return self.class_repeats

    @property
    def channels(self) -> int:
        """d, numbers of a token."""
        return self.head.channels

    def setup(self):
        width, places = self.encoder.width, self.class_repeats + self.length
        dense = functools.partial(linear, kernel_init=XAVIER, dtype=self.dtype)

        def table(name, rows, width):
            return self.param(name, named(NORMAL_02, None, "embed"), (rows, width))

        def vector(name, width):
            return self.param(name, named(NORMAL_02, "embed"), (width,))

        self.class_embedding = table("class_embedding", self.num_classes, width)
        self.no_class = vector("no_class", width)
        self.token_proj = dense(width, (None, "embed"))
        self.token_norm = nn.LayerNorm(NORM_EPS)
        self.encoder_positions = table("encoder_positions", places, width)
        self.decoder_proj = dense(self.decoder.width, ("embed", None))
        self.mask_token = vector("mask_token", self.decoder.width)
        self.decoder_positions = table("decoder_positions", places, self.decoder.width)
        self.output_positions = table("output_positions", self.length, self.decoder.width)

    @nn.nowrap
    def draw(self, keys: jax.Array, batch_key: jax.Array | None = None) -> Draws:
        """Draws for a training step, each example's from its own key [B].

        Args:
          batch_key: of the mask ratio, the same for all pieces of a batch; None: examples draw it.
        """

        def one(key):
            key, head_key = jax.random.split(key)
            uniform = jax.random.uniform(key, (1 + self.length,))
            return Draws(
                mask_ratio=mask_ratio.ppf(uniform[0], self.mask_ratio_min),
                order=jnp.argsort(uniform[1:]).astype(jnp.int32),
                head=self.head.draws(head_key, self.length, self.shared_time),
            )

        drawn = jax.vmap(one)(keys)
        if batch_key is None:
            return drawn
        ratio = mask_ratio.ppf(jax.random.uniform(batch_key), self.mask_ratio_min)
        return drawn.replace(mask_ratio=jnp.broadcast_to(ratio, drawn.mask_ratio.shape))

    def predict(self, y: jax.Array, labels: jax.Array, draws: Draws) -> Prediction:
        """One training forward; with a dropout rng there is dropout.

        How many tokens are hidden is one number for all, that of the first example's mask ratio.

        Args:
          y: [B, N, d] tokens.
          labels: [B] in 0..num_classes.
          draws: as `draw` makes them.

        Returns:
          See `predict_tokens`; the loss is over hidden tokens.
        """
        check_labels(labels, self.num_classes)
        check_numbers("y", y, labels.shape[0], self.length, self.channels)
        z, hidden = self.context(y, labels, draws)
        return predict_tokens(self.head, z, y, draws.head, hidden)

    def initialize(self, y: jax.Array, labels: jax.Array, keys: jax.Array) -> Prediction:
        """Touches every parameter, for `init`: arguments as in `predict`, keys [B]."""
        return self.predict(y, labels, self.draw(keys))

    def context(self, y: jax.Array, labels: jax.Array, draws: Draws) -> tuple[jax.Array, jax.Array]:
        """Vectors for the head [B, N, D] at the places of the tokens, and which are hidden [B, N].

        Arguments as in `predict`.
        """
        least = max(1, math.ceil(self.length * self.mask_ratio_min))
        count = jnp.ceil(self.length * draws.mask_ratio[0]).astype(jnp.int32)
        known = self.length - jnp.clip(count, least, self.length)
        places = jnp.flip(draws.order, axis=1)
        slots = places[:, : self.length - least]
        tokens = self.embed_tokens(permutation.gather(y, slots), slots)
        z = self.decode(self.encode(self.embed_class(labels), tokens, known), places, known)
        hidden = jnp.broadcast_to(jnp.arange(self.length) >= known, places.shape)
        return permutation.scatter(z, places), permutation.scatter(hidden, places)

    def embed_class(self, labels: jax.Array) -> jax.Array:
        """[B] -> [B, R, D]: the copies of the class, each with a position of its own."""
        table = gathered(jnp.concatenate([self.class_embedding, self.no_class[None]]))
        positions = self.encoder_positions[: self.class_repeats]
        return self.token_norm(table[labels][:, None] + positions[None])

    def embed_tokens(self, tokens: jax.Array, places: jax.Array) -> jax.Array:
        """[B, S, d] at the places [B, S] -> [B, S, D]."""
        x = self.token_proj(tokens.astype(self.dtype))
        return self.token_norm(x + gathered(self.encoder_positions)[self.class_repeats + places])

    def encode(self, classes: jax.Array, tokens: jax.Array, known: jax.Array | int) -> jax.Array:
        """The encoder over classes [B, R, D] and the first `known` of tokens [B, S, D].

        Returns:
          [B, R + S, D]; tokens that are not known have been seen by none of the others.
        """
        x = jnp.concatenate([classes, tokens], axis=1)
        visible = jnp.arange(x.shape[1]) < self.class_repeats + known
        return self.encoder(x, visible if tokens.shape[1] else None)

    def decode(
        self,
        encoded: jax.Array,
        places: jax.Array,
        known: jax.Array | int,
        wanted: jax.Array | None = None,
    ) -> jax.Array:
        """The decoder, with mask tokens in the places of all but the `known` first.

        Args:
          encoded: [B, R + S, D], as `encode` returns it.
          places: [B, N] of the tokens, in the order in which they are revealed.
          wanted: [W] integers, which of them to return; None: all.

        Returns:
          [B, N, D] or [B, W, D], the head's condition for each token.
        """
        classes, x = jnp.split(self.decoder_proj(encoded), [self.class_repeats], axis=1)
        mask = jnp.broadcast_to(self.mask_token, (x.shape[0], self.length, x.shape[2]))
        x = jnp.concatenate([x, mask[:, x.shape[1] :]], axis=1)
        x = jnp.where((jnp.arange(self.length) < known)[None, :, None], x, mask)
        classes += self.decoder_positions[None, : self.class_repeats]
        x += gathered(self.decoder_positions)[self.class_repeats + places]
        x = jnp.concatenate([classes, x], axis=1)
        if wanted is None:
            x = self.decoder(x)[:, self.class_repeats :]
        else:
            x = self.decoder(x, wanted=self.class_repeats + wanted)
            places = places[:, wanted]
        return x + gathered(self.output_positions)[places]

    @nn.nowrap
    def sample(self, params: dict, request: Request) -> jax.Array:
        """Draws tokens [B, N, d] float32 for each label, each example's from its own key.

        Of the settings, tokens are revealed `iterations` times, and `steps` are those of the head.
        """
        return mar_sampler.sample(self, params, request)


def _make(config: ConfigDict, remat: bool) -> BasisGenerator:
    generator, dtype = config.model.generator, jnp.dtype(config.dtype)
    transformer = functools.partial(
        Transformer,
        width=generator.width,
        depth=generator.depth,
        heads=generator.heads,
        dropout=generator.dropout,
        attention_dropout=generator.attention_dropout,
        remat=remat,
        dtype=dtype,
    )
    host = MAR(
        length=rows_of_basis(config),
        num_classes=config.data.num_classes,
        encoder=transformer(),
        decoder=transformer(),
        head=make_head(config, written_width(config), remat),
        class_repeats=generator.class_repeats,
        mask_ratio_min=generator.mask_ratio_min,
        shared_time=generator.shared_time,
        dtype=dtype,
    )
    return make_basis_generator(config, host)


def _check(config: ConfigDict, rows: int, length: int) -> None:
    del rows
    check_heads(config)
    if config.sample.iterations > length:
        expected = f"1 to {length}, the tokens to be revealed"
        raise InputError("sample.iterations", f"{config.sample.iterations}", expected)


KIND = GeneratorKind(
    make=_make,
    writes_numbers=True,
    fields=("class_repeats", "mask_ratio_min", "shared_time"),
    sampling_fields=("iterations",),
    queries=lambda config: 0,
    check=_check,
)
