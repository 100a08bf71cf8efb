"""What teaches a basis inside a tokenizer to put first what matters most."""

import chex
import jax
import jax.numpy as jnp

from bar_jax.bases import objectives

# Of the energy of latents that are all zero: nothing is lost of them.
EPS = 1e-12


def residual(z: jax.Array, coefficients: jax.Array, A: jax.Array) -> jax.Array:
    """How badly prefixes of quantised coefficients recover the latents: [B] float32.

    The residual objective of the basis paper (eq. 10, `objectives.residual`) with latents in the
    place of tokens, as a fraction of the energy of each image's latents. A fraction, because
    latents, unlike the basis paper's tokens, are learned: they could make the objective small by
    shrinking.

    Args:
      z: [B, N, k] latents.
      coefficients: [B, N', k] what is left of A z.
      A: [N', N].

    Returns:
      0 if every prefix recovers all; 1 if none recovers anything.
    """
    chex.assert_equal_shape_prefix([z, coefficients], 1)
    energy = jnp.mean(jnp.square(z.astype(jnp.float32)), axis=(1, 2))
    return objectives.residual(z, coefficients[None], A)[0] / (energy + EPS)


def draw_lengths(keys: jax.Array, length: int) -> jax.Array:
    """A random prefix for each example: [B] int32, uniform in 1..length, from its own key."""
    return jax.vmap(lambda key: jax.random.randint(key, (), 1, length + 1))(keys)
