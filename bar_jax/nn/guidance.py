"""Classifier-free guidance (Ho and Salimans 2022): labels dropped in training, two branches after.

Of a batch with both branches the conditional half comes first; "no class" is one class more.
"""

import jax
import jax.numpy as jnp


def drop_labels(labels: jax.Array, uniform: jax.Array, rate: float, no_class: int) -> jax.Array:
    """Labels [B], "no class" in the place of those whose uniform draw [B] is below the rate."""
    return jnp.where(uniform < rate, no_class, labels)


def branches(labels: jax.Array, no_class: int, guided: bool) -> tuple[jax.Array, jax.Array]:
    """The classes of a batch's branches, and which of them each row is of.

    "No class" stands once for all of the unconditional branch, so that what depends on the class
    alone is computed once.

    Args:
      labels: [B].
      guided: whether there is an unconditional branch.

    Returns:
      classes [B or B + 1] and rows [B or 2 B], so that the rows' labels are classes[rows].
    """
    rows = jnp.arange(labels.shape[0])
    if not guided:
        return labels, rows
    unconditional = jnp.full_like(rows, labels.shape[0])
    return jnp.append(labels, no_class), jnp.concatenate([rows, unconditional])


def both(x: jax.Array, guided: bool) -> jax.Array:
    """What both branches share, for each of them: [B, ...] -> [2 B, ...]; as it is without."""
    return jnp.concatenate([x, x]) if guided else x


def guided(outputs: jax.Array, scale: jax.Array | float | None) -> jax.Array:
    """u + s (c - u), of logits, predicted noise or flows.

    Args:
      outputs: [2 B, ...], the conditional half first; without guidance [B, ...].
      scale: s; None for no guidance.

    Returns:
      [B, ...].
    """
    if scale is None:
        return outputs
    half = outputs.shape[0] // 2
    conditional, unconditional = outputs[:half], outputs[half:]
    return unconditional + scale * (conditional - unconditional)


# The scale after `done` of `total`, of the scale S that is asked for. Tokens, cells and revealed
# tokens are counted; `linear` begins without guidance (published for all generators).
SCHEDULES = {
    "constant": lambda scale, done, total: jnp.broadcast_to(scale, jnp.shape(done)),
    "linear": lambda scale, done, total: 1 + (scale - 1) * done / total,
}
