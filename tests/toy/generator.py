"""A toy generator: a token depends on the class and on its turn, on no other token."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bar_jax.bases import Basis, make_basis
from bar_jax.generators.kind import GeneratorKind, written_grid, written_width
from bar_jax.heads import make_head


class Turns(nn.Module):
    """p(bits of an image's tokens [B, N, k] | class)."""

    head: nn.Module
    bits: int
    token_grid: tuple[int, int]
    num_classes: int
    width: int
    basis: Basis

    token_dtype = jnp.uint8
    prefix = 0  # positions in front of the tokens

    @property
    def length(self) -> int:
        """Tokens that are written."""
        return math.prod(self.token_grid)

    @property
    def token_shape(self) -> tuple[int, int]:
        """Of an image's tokens."""
        return self.length, self.bits

    def setup(self):
        self.classes = nn.Embed(self.num_classes + 1, self.width)
        self.turns = nn.Embed(self.length, self.width)

    @nn.nowrap
    def order(self) -> np.ndarray:
        """[N] the place of the first, second, ... token."""
        return self.basis.order(self.token_grid, np.arange(self.length, dtype=np.int32))

    def states(self, labels: jax.Array) -> jax.Array:
        """Labels [B] -> hidden states [B N, W], in the order of writing."""
        states = self.classes(labels)[:, None] + self.turns(jnp.arange(self.length))[None]
        return states.reshape(-1, self.width)

    @nn.nowrap
    def draw(self, keys, batch_key=None) -> None:
        """The random draws of a training step."""
        del keys, batch_key

    def loss(self, tokens, labels, draws, random_share, deterministic, counted=None):
        """The head's sums over a batch."""
        del draws, random_share, deterministic
        if counted is not None:
            counted = jnp.repeat(counted, self.length)
        written = tokens[:, self.order()].reshape(-1, self.bits)
        return self.head.loss(self.states(labels), written, None, counted)

    def initialize(self, tokens, labels, keys):
        """Touches every parameter."""
        return self.loss(tokens, labels, self.draw(keys), 0.0, deterministic=True)

    @nn.nowrap
    def sample(self, params, request):
        """Bits [B, N, k] of a batch; image i depends on keys[i] alone."""
        schedule = request.settings.unmasking_schedule
        shape = (self.length, *self.head.noise_shape(schedule))
        noise = jax.vmap(lambda key: jax.random.uniform(key, shape))(request.keys)
        bits, _ = self.head.apply(
            {"params": params["head"]},
            self.apply({"params": params}, request.labels, method=self.states),
            None,
            request.temperature,
            schedule,
            noise.reshape(-1, *shape[1:]),
            method=self.head.sample,
        )
        bits = bits.reshape(-1, *self.token_shape)
        return jnp.zeros_like(bits).at[:, self.order()].set(bits)


def _make(config, remat: bool) -> Turns:
    bits = written_width(config)
    return Turns(
        head=make_head(config, bits, remat),
        bits=bits,
        token_grid=written_grid(config),
        num_classes=config.data.num_classes,
        width=config.model.generator.width,
        basis=make_basis(config),
    )


KIND = GeneratorKind(make=_make, writes_bits=True, queries=lambda config: 0)  # there is no cache
