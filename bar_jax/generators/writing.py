"""Writing an image's tokens one after another with the causal transformer and its KV cache."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from bar_jax.generators.causal import CausalTransformer
from bar_jax.nn.decoding import decoding_params, fit_ahead


def write_tokens(
    trunk: CausalTransformer,
    params: dict,
    labels: jax.Array,
    order: jax.Array,
    draw: Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]],
    guided: bool,
    count: int = 0,
    attention: str = "xla",
) -> tuple[jax.Array, Any]:
    """One scan over tokens.

    Args:
      params: of the trunk.
      labels: [B] in 0..num_classes; num_classes is "no class".
      order: [B, L], the place of each written token.
      draw: (the head's input [B, W], index of the token in the order) -> token [B, n], and what to
        record of it. Where `guided`, the input is [2 B, W], the unconditional half last.
      guided: whether there is an unconditional branch.
      count: m, how many tokens are written: the first m of those that there would be; 0: all L.
      attention: who computes it, of `nn.decode_attention.KINDS`.

    Returns:
      Tokens [B, m, n] in the order in which they were written, and the records [m, ...].
    """
    chex.assert_shape(order, (*labels.shape, trunk.num_tokens))
    length, batch = count or trunk.num_tokens, labels.shape[0]
    params = decoding_params(params, trunk.dtype)

    def apply(method, *args):
        return trunk.apply({"params": params}, *args, method=method)

    def both(x):
        """The conditional and the unconditional branch, one after the other in the batch."""
        return jnp.concatenate([x, x]) if guided else x

    # "No class" stands once for all of the unconditional branch.
    classes, rows = labels, jnp.arange(batch)
    if guided:
        classes = jnp.append(labels, trunk.num_classes)
        rows = jnp.concatenate([rows, jnp.full_like(rows, batch)])
    all_labels, all_orders = classes[rows], both(order)

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
        x = both(apply(trunk.embed_tokens, token[:, None])[:, 0])
        return (x, cache), (token, recorded)

    prefix = modulations(0, trunk.class_repeats)
    cache = apply(trunk.prefill, all_labels, all_orders, prefix, length, attention)
    x = apply(trunk.embed_class, all_labels).astype(trunk.dtype)
    _, (tokens, recorded) = jax.lax.scan(write_token, (x, cache), jnp.arange(length))
    return jnp.moveaxis(tokens, 0, 1), recorded


def token_guidance(scale: jax.Array | float, i: jax.Array, length: int) -> jax.Array:
    """Guidance at token i of the order: 1 + (S - 1) i / L (published).

    So none at the first token, and never the full S.
    """
    return 1 + (scale - 1) * i / length
