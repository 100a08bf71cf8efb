"""The share of tokens that MAR hides in training: a normal of mean 1 cut to [minimum, 1]."""

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

SCALE = 0.25  # standard deviation of the normal before it is cut


def ppf(uniform: jax.Array, minimum: float) -> jax.Array:
    """The ratio below which a share `uniform` of all draws lies: uniform draws -> ratios."""
    below = _below(minimum)
    ratio = 1 + SCALE * norm.ppf(below + uniform * (0.5 - below))
    return jnp.clip(ratio, minimum, 1)


def cdf(ratio: jax.Array, minimum: float) -> jax.Array:
    """The inverse of `ppf`."""
    below = _below(minimum)
    share = (norm.cdf((ratio - 1) / SCALE) - below) / (0.5 - below)
    return jnp.clip(share, 0, 1)


def pdf(ratio: jax.Array, minimum: float) -> jax.Array:
    """Density."""
    density = norm.pdf((ratio - 1) / SCALE) / (SCALE * (0.5 - _below(minimum)))
    return jnp.where((ratio < minimum) | (ratio > 1), 0, density)


def mean_std(minimum: float) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation."""
    low = (minimum - 1) / SCALE
    mass = 0.5 - _below(minimum)
    first = (norm.pdf(low) - norm.pdf(0.0)) / mass
    variance = 1 + low * norm.pdf(low) / mass - first**2
    return 1 + SCALE * first, SCALE * jnp.sqrt(variance)


def _below(minimum: float) -> jax.Array:
    """What the normal has below `minimum`."""
    return norm.cdf((minimum - 1) / SCALE)
