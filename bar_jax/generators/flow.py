"""From noise to data along a predicted flow: x_t = (1 - t) x + t eps, v = eps - x.

Euler steps of the ordinary differential equation dx / dt = v, or Euler-Maruyama steps of the
stochastic one with the same marginals and diffusion w(t) = 2 t (SiT, Ma et al. 2024), as published
xAR takes them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

LAST_TIME = 0.04  # up to which Euler-Maruyama's steps are stochastic


def sampling_times(sampler: str, steps: int) -> np.ndarray:
    """[steps + 1] float64: the times of the evaluations, from 1 downwards, and 0.

    Args:
      sampler: `euler` (evenly spaced) | `euler_maruyama` (evenly to LAST_TIME, then one step).
    """
    if sampler == "euler":
        return np.linspace(1, 0, steps + 1)
    return np.append(np.linspace(1, LAST_TIME, steps), 0.0)


def diffusion(t: jax.Array | float) -> jax.Array | float:
    """w(t) = 2 t."""
    return 2 * t


def score(flow: jax.Array, x: jax.Array, t: jax.Array | float) -> jax.Array:
    """Gradient of the log-density of noisy tokens, from their flow: -((1 - t) v + x) / t."""
    return -((1 - t) * flow + x) / t


def drift(flow: jax.Array, x: jax.Array, t: jax.Array | float) -> jax.Array:
    """Drift of the stochastic equation: v - w / 2 * score."""
    return flow - 0.5 * diffusion(t) * score(flow, x, t)


def euler(flow, x, t, after):
    """x at the time `after`, from x and its flow at t."""
    return x + (after - t) * flow


def euler_maruyama(flow, x, t, after, noise):
    """The same for the stochastic equation, with standard normal noise (0: the mean alone)."""
    dt = after - t
    return x + drift(flow, x, t) * dt + jnp.sqrt(diffusion(t)) * jnp.sqrt(-dt) * noise


def solve(
    sampler: str,
    times: np.ndarray,
    flow_at: Callable,
    x: jax.Array,
    noise: jax.Array | None,
    carry: object,
) -> tuple[jax.Array, object]:
    """From noise at times[0] to data at times[-1].

    Args:
      sampler: `euler` | `euler_maruyama`.
      times: as `sampling_times` gives them.
      flow_at: (x, number of the step, carry) -> the flow at that step, and the carry.
      x: noise to start from.
      noise: [steps - 1, ...] of the stochastic steps; `euler` needs none. The last has none.
      carry: what `flow_at` is handed at the first step.

    Returns:
      x at the end, and the last carry.
    """
    table = jnp.asarray(times, jnp.float32)

    def step(state, inputs):
        (x, carry), (i, eps) = state, inputs
        flow, carry = flow_at(x, i, carry)
        t, after = table[i], table[i + 1]
        if sampler == "euler":
            return (euler(flow, x, t, after), carry), None
        return (euler_maruyama(flow, x, t, after, eps), carry), None

    steps, eps = len(times) - 1, None
    if sampler != "euler":
        eps = jnp.concatenate([noise, jnp.zeros_like(x)[None]])
    return jax.lax.scan(step, (x, carry), (jnp.arange(steps), eps))[0]
