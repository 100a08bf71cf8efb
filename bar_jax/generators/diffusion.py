"""Next-token prediction of real-valued tokens: causal transformer and diffusion head.

The plain form of basis autoregression (basis paper, eqs. 1 and 8): the transformer of the
masked-bit paper reads the tokens written so far, the head of MAR draws the next.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from bar_jax.generators.causal import CausalTransformer
from bar_jax.generators.denoising import predict_tokens
from bar_jax.generators.prediction import Prediction
from bar_jax.generators.request import Request
from bar_jax.generators.writing import write_tokens
from bar_jax.heads import diffusion
from bar_jax.nn.decoding import decoding_params
from bar_jax.runtime.arguments import check_labels, check_numbers


class CausalDiffusion(nn.Module):
    """p(tokens | class), one token after another in any order.

    Attributes:
      trunk: the causal transformer, over tokens of d channels; a sequence that is no grid has one
        row.
      head: from the trunk's output to one token of d channels.
      shared_time: one noise level per image and draw, not one per token.
    """

    trunk: CausalTransformer
    head: diffusion.DiffusionHead
    shared_time: bool = False

    takes_order = True  # `predict` and `sample` take the places of tokens

    @property
    def length(self) -> int:
        """N, tokens of an image."""
        return self.trunk.num_tokens

    @property
    def prefix(self) -> int:
        """Positions in front of the first token."""
        return self.trunk.prefix

    @property
    def channels(self) -> int:
        """d, numbers of a token."""
        return self.head.channels

    @property
    def num_classes(self) -> int:
        """Classes 0..num_classes - 1; num_classes itself means "no class"."""
        return self.trunk.num_classes

    @nn.nowrap
    def draw(self, keys: jax.Array, batch_key: jax.Array | None = None) -> diffusion.Draws:
        """Draws for a training step [B, R, N, ...], each example's own [B]; `batch_key` of none."""
        del batch_key
        draw = lambda key: self.head.draws(key, self.length, self.shared_time)
        return jax.vmap(draw)(keys)

    def predict(
        self,
        y: jax.Array,
        labels: jax.Array,
        draws: diffusion.Draws,
        order: jax.Array | None = None,
    ) -> Prediction:
        """One training forward; with a dropout rng there is dropout.

        Args:
          y: [B, N, d] tokens, in the order in which they are written.
          labels: [B] in 0..num_classes.
          draws: as `draw` makes them.
          order: [B, N], the place in the grid of each of them; None: 0..N - 1.

        Returns:
          See `predict_tokens`.
        """
        check_labels(labels, self.num_classes)
        check_numbers("y", y, labels.shape[0], self.length, self.channels)
        z = self.trunk(y, labels, self._order(labels, order))
        return predict_tokens(self.head, z, y, draws)

    def initialize(self, y: jax.Array, labels: jax.Array, keys: jax.Array) -> Prediction:
        """Touches every parameter, for `init`: arguments as in `predict`, keys [B]."""
        return self.predict(y, labels, self.draw(keys))

    @nn.nowrap
    def sample(self, params: dict, request: Request, order: jax.Array | None = None) -> jax.Array:
        """Draws tokens, each example's from its own key.

        Args:
          request: of its settings, `steps` are those of the head.
          order: as for `predict`.

        Returns:
          [B, N, d] float32, in the order in which they are written.
        """

        def noise(i):
            def one(key):
                shape = (request.settings.steps + 1, self.channels)
                return jax.random.normal(jax.random.fold_in(key, i), shape)

            drawn = jnp.moveaxis(jax.vmap(one)(request.keys), 1, 0)
            return drawn[0], drawn[1:]

        order = self._order(request.labels, order)
        return sample_tokens(self, params, request, order, noise)

    @nn.nowrap
    def _order(self, labels, order):
        raster = jnp.arange(self.length, dtype=jnp.int32)[None]
        return jnp.broadcast_to(raster, (labels.size, self.length)) if order is None else order


def sample_tokens(
    host: CausalDiffusion,
    params: dict,
    request: Request,
    order: jax.Array,
    noise: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
) -> jax.Array:
    """Draws tokens, with every random number given.

    Guidance acts on the predicted noise; its scale at token i of N is `request.guidance(i, N)`.

    Args:
      params: of the host.
      order: [B, N], the place of each written token.
      noise: index of a token in the order -> [B, d] where it starts, [T, B, d] noise of the steps.

    Returns:
      [B, N, d] float32, in the order in which they are written.
    """
    trunk, settings = host.trunk, request.settings
    request.check(trunk.num_classes)
    head_params = decoding_params(
        params["head"], trunk.dtype, weights=settings.weights, rows=request.rows
    )

    def draw(z, i):
        first, of_steps = noise(i)
        token = diffusion.sample(
            host.head,
            head_params,
            z,
            steps=settings.steps,
            guidance=request.guidance(i, trunk.num_tokens),
            temperature=request.temperature,
            first=first,
            noise=of_steps,
            clip=settings.clip,
        )
        return token, None

    return write_tokens(trunk, params["trunk"], request, order, draw)[0]
