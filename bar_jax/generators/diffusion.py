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
from bar_jax.generators.settings import Settings
from bar_jax.generators.writing import token_guidance, write_tokens
from bar_jax.heads import diffusion
from bar_jax.nn.decoding import Weights, decoding_params
from bar_jax.runtime.arguments import check_labels, check_numbers, check_scale


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
    def sample(
        self,
        params: dict,
        labels: jax.Array,
        keys: jax.Array,
        settings: Settings,
        guidance_scale: jax.Array | float,
        temperature: jax.Array | float,
        order: jax.Array | None = None,
    ) -> jax.Array:
        """Draws tokens, each example's from its own key.

        Args:
          labels: [B] in 0..num_classes; num_classes is "no class".
          keys: [B].
          settings: `steps`, those of the head.
          guidance_scale: S, see `sample_tokens`; not used unless `settings.guided`.
          temperature: what the noise of the head's steps is multiplied by.
          order: as for `predict`.

        Returns:
          [B, N, d] float32, in the order in which they are written.
        """

        def noise(i):
            def one(key):
                shape = (settings.steps + 1, self.channels)
                return jax.random.normal(jax.random.fold_in(key, i), shape)

            drawn = jnp.moveaxis(jax.vmap(one)(keys), 1, 0)
            return drawn[0], drawn[1:]

        return sample_tokens(
            self,
            params,
            labels,
            order=self._order(labels, order),
            steps=settings.steps,
            clip=settings.clip,
            guidance_scale=guidance_scale if settings.guided else None,
            temperature=temperature,
            noise=noise,
            attention=settings.attention,
            weights=settings.weights,
        )

    @nn.nowrap
    def _order(self, labels, order):
        raster = jnp.arange(self.length, dtype=jnp.int32)[None]
        return jnp.broadcast_to(raster, (labels.size, self.length)) if order is None else order


def sample_tokens(
    host: CausalDiffusion,
    params: dict,
    labels: jax.Array,
    *,
    order: jax.Array,
    steps: int,
    guidance_scale: jax.Array | float | None,
    temperature: jax.Array | float,
    noise: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    clip: float = 0.0,
    attention: str = "xla",
    weights: Weights = "float32",
) -> jax.Array:
    """Draws tokens, with every random number given.

    Guidance acts on the predicted noise, u + s (c - u), with s as in `token_guidance`.

    Args:
      params: of the host.
      labels: [B] in 0..num_classes; num_classes is "no class".
      order: [B, N], the place of each written token.
      steps: T of the diffusion head.
      guidance_scale: S; None runs without the unconditional branch.
      temperature: what the noise of the head's steps is multiplied by.
      noise: index of a token in the order -> [B, d] where it starts, [T, B, d] noise of the steps.
      clip: of the head, see `heads.diffusion.sample`.
      attention: over the KV cache, of `nn.decode_attention.KINDS`.
      weights: what layers' kernels are kept as, see `nn.decoding.decoding_params`.

    Returns:
      [B, N, d] float32, in the order in which they are written.
    """
    trunk, guided, labels = host.trunk, guidance_scale is not None, jnp.asarray(labels)
    check_labels(labels, trunk.num_classes)
    check_scale("temperature", temperature)
    if guided:
        check_scale("guidance_scale", guidance_scale)
    rows = (1 + guided) * len(labels)
    head_params = decoding_params(params["head"], trunk.dtype, weights=weights, rows=rows)

    def draw(z, i):
        first, of_steps = noise(i)
        token = diffusion.sample(
            host.head,
            head_params,
            z,
            steps=steps,
            guidance=token_guidance(guidance_scale, i, trunk.num_tokens) if guided else None,
            temperature=temperature,
            first=first,
            noise=of_steps,
            clip=clip,
        )
        return token, None

    tokens, _ = write_tokens(
        trunk, params["trunk"], labels, order, draw, guided, attention=attention, weights=weights
    )
    return tokens
