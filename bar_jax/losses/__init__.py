"""What trains a tokenizer, and what every loss returns."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

# name -> (weighted sum, sum of weights) over the examples of a piece of a batch: pieces add up,
# and are divided once.
Sums = dict[str, tuple[jax.Array, jax.Array]]


def weighted(terms: Mapping[str, jax.Array], weights: Mapping[str, float]) -> Sums:
    """Adds the terms of a loss.

    Args:
      terms: name -> value of each example [B].
      weights: name -> weight of a term; there may be more of them than terms.

    Returns:
      `loss`, the weighted total, and every term alone.
    """
    total = sum(weights[name] * values for name, values in terms.items())
    return {
        name: (jnp.sum(values), jnp.float32(values.size))
        for name, values in {"loss": total, **terms}.items()
    }
