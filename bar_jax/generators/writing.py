"""Writing an image's tokens one after another with the causal transformer and its KV cache."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from bar_jax.generators.causal import CausalTransformer
from bar_jax.generators.request import Request
from bar_jax.nn.decoding import decoding_params, fit_ahead
from bar_jax.nn.guidance import both, branches


def write_tokens(
    trunk: CausalTransformer,
    params: dict,
    request: Request,
    order: jax.Array,
    draw: Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]],
) -> tuple[jax.Array, Any]:
    """One scan over tokens.

    Args:
      params: of the trunk.
      request: of its settings, `tokens` of a sequence are written (0: all L).
      order: [B, L], the place of each written token.
      draw: (the head's input [B, W], index of the token in the order) -> token [B, n], and what to
        record of it. With guidance the input is [2 B, W], the unconditional half last.

    Returns:
      Tokens [B, m, n] in the order in which they were written, and the records [m, ...].
    """
    labels, settings = jnp.asarray(request.labels), request.settings
    chex.assert_shape(order, (*labels.shape, trunk.num_tokens))
    length = settings.tokens or trunk.num_tokens
    params = decoding_params(params, trunk.dtype, weights=settings.weights, rows=request.rows)

    def apply(method, *args):
        return trunk.apply({"params": params}, *args, method=method)

    classes, rows = branches(labels, trunk.num_classes, settings.guided)
    all_labels, all_orders = classes[rows], both(order, settings.guided)

    positions = trunk.class_repeats + length
    ahead = None
    if fit_ahead(trunk.depth, classes.size * positions, trunk.width, trunk.dtype):
        ahead = apply(trunk.modulations, classes, 0, positions)

    def modulations(start, size):
        if ahead is None:
            of_classes = apply(trunk.modulations, classes, start, size)
        else:
            of_classes = [jax.lax.dynamic_slice_in_dim(m, start, size, axis=1) for m in ahead]
        return tuple(m[rows] for m in of_classes)

    def write_token(carry, i):
        x, cache = carry
        here = modulations(trunk.class_repeats + i, 1)
        z, cache = apply(trunk.decode, x, all_orders, here, cache, i)
        token, recorded = draw(z, i)
        x = both(apply(trunk.embed_tokens, token[:, None])[:, 0], settings.guided)
        return (x, cache), (token, recorded)

    prefix = modulations(0, trunk.class_repeats)
    cache = apply(trunk.prefill, all_labels, all_orders, prefix, length, settings.attention)
    x = apply(trunk.embed_class, all_labels).astype(trunk.dtype)
    _, (tokens, recorded) = jax.lax.scan(write_token, (x, cache), jnp.arange(length))
    return jnp.moveaxis(tokens, 0, 1), recorded
