"""Gaussian diffusion of token vectors: the noise schedule, the loss, one step back.

Cosine schedule of 1000 steps, noise prediction, variance learned inside its range (Nichol and
Dhariwal 2021), as published MAR configures it. A network's output is [eps | fraction]: the noise,
and for each channel where the log-variance lies between its two bounds.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

STEPS = 1000  # of training
BIN = 1 / 255  # half a bin of the decoder's likelihood; published code keeps that of 8-bit images
EDGE = 0.999  # beyond +-EDGE the last bin is open


class Tables(NamedTuple):
    """What a schedule of T steps needs, float64 numpy arrays [T], from the least noise up.

    Attributes:
      timesteps: int64, the steps of training that are kept: what the network gets.
      betas: variance added by each step.
      alphas_cumprod: alpha_bar, the share of the signal's variance that is left.
      posterior_log_variance_clipped: of q(x_{t-1} | x_t, x_0), the first as the second.
      posterior_mean_coef1, posterior_mean_coef2: weights of x_0 and x_t in its mean.
      sqrt_recip_alphas_cumprod, sqrt_recipm1_alphas_cumprod: x_0 from x_t and the noise.
    """

    timesteps: np.ndarray
    betas: np.ndarray
    alphas_cumprod: np.ndarray
    posterior_log_variance_clipped: np.ndarray
    posterior_mean_coef1: np.ndarray
    posterior_mean_coef2: np.ndarray
    sqrt_recip_alphas_cumprod: np.ndarray
    sqrt_recipm1_alphas_cumprod: np.ndarray


class Moments(NamedTuple):
    """What one step back draws from, each [..., d] float32.

    Attributes:
      mean, log_variance: of x_{t-1}.
      clean: x_0 as it is recovered from x_t.
    """

    mean: jax.Array
    log_variance: jax.Array
    clean: jax.Array


@functools.cache
def tables(count: int = STEPS, steps: int = STEPS) -> Tables:
    """The tables of `count` sampling steps out of `steps` of training."""
    timesteps = respaced(count, steps)
    kept = np.cumprod(1 - cosine_betas(steps))[timesteps]
    before = np.append(1.0, kept[:-1])
    betas = 1 - kept / before
    variance = betas * (1 - before) / (1 - kept)
    variance[:1] = variance[1:2] if count > 1 else betas  # 0 itself has no logarithm
    return Tables(
        timesteps=timesteps,
        betas=betas,
        alphas_cumprod=kept,
        posterior_log_variance_clipped=np.log(variance),
        posterior_mean_coef1=betas * np.sqrt(before) / (1 - kept),
        posterior_mean_coef2=(1 - before) * np.sqrt(1 - betas) / (1 - kept),
        sqrt_recip_alphas_cumprod=np.sqrt(1 / kept),
        sqrt_recipm1_alphas_cumprod=np.sqrt(1 / kept - 1),
    )


def cosine_betas(steps: int = STEPS) -> np.ndarray:
    """beta of each step: alpha_bar is cos^2, and no beta is above 0.999. Float64 [steps]."""
    times = np.arange(steps + 1) / steps
    alpha_bar = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def respaced(count: int, steps: int = STEPS) -> np.ndarray:
    """`count` of the steps 0..steps - 1, evenly spread, both ends included. Int64 [count]."""
    stride = (steps - 1) / (count - 1) if count > 1 else 1.0
    chosen, place = [], 0.0
    for _ in range(count):  # added up, as published: its rounding decides ties
        chosen.append(round(place))
        place += stride
    return np.array(chosen, np.int64)


def at(table: np.ndarray, times: jax.Array) -> jax.Array:
    """Rows of a table, float32: times [...] integers -> [..., 1]."""
    return jnp.asarray(table, jnp.float32)[times][..., None]


def add_noise(clean: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
    """x_t of x_0 and the noise [..., d], at steps of training [...]."""
    kept = tables().alphas_cumprod
    return at(np.sqrt(kept), times) * clean + at(np.sqrt(1 - kept), times) * noise


def recover(noisy: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
    """x_0 of x_t and the noise: the inverse of `add_noise`."""
    table = tables()
    scale = at(table.sqrt_recip_alphas_cumprod, times)
    return scale * noisy - at(table.sqrt_recipm1_alphas_cumprod, times) * noise


def signal_to_noise(times: jax.Array) -> jax.Array:
    """alpha_bar / (1 - alpha_bar) at steps of training [...], float32."""
    kept = tables().alphas_cumprod
    return at(kept / (1 - kept), times)[..., 0]


def moments(
    eps: jax.Array, fraction: jax.Array, noisy: jax.Array, rows: dict, clip: float = 0.0
) -> Moments:
    """What the step from x_t to x_{t-1} draws from.

    Args:
      eps, fraction: [..., d] float32, the network's output. The fraction is not clamped.
      noisy: [..., d] x_t.
      rows: of the tables at t, by name, each broadcasting to [..., d]: see `step_rows`.
      clip: largest size of x_0; 0: none, as published. At the first steps x_0 is the network's
        error times up to 2e4, which a head that was trained for long survives alone.
    """
    scale, root = rows["sqrt_recip_alphas_cumprod"], rows["sqrt_recipm1_alphas_cumprod"]
    clean = scale * noisy - root * eps
    if clip:
        clean = jnp.clip(clean, -clip, clip)
    mean = rows["posterior_mean_coef1"] * clean + rows["posterior_mean_coef2"] * noisy
    fraction = (fraction + 1) / 2
    least = rows["posterior_log_variance_clipped"]
    log_variance = fraction * rows["log_betas"] + (1 - fraction) * least
    return Moments(mean, log_variance, clean)


def step_rows(table: Tables) -> dict[str, np.ndarray]:
    """What `moments` needs of the tables, float32 [T]."""
    names = Tables._fields[3:]
    rows = {name: getattr(table, name) for name in names} | {"log_betas": np.log(table.betas)}
    return {name: row.astype(np.float32) for name, row in rows.items()}


def variational_bits(
    eps: jax.Array, fraction: jax.Array, clean: jax.Array, noisy: jax.Array, times: jax.Array
) -> jax.Array:
    """The variational bound's term of each step of training, in bits per channel.

    KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)); at t = 0 the negative log-likelihood of x_0's
    bin. It trains the variance and nothing else: no gradient reaches eps, clean and noisy.

    Args:
      eps, fraction, clean, noisy: [..., d]; the network's output, x_0 and x_t.
      times: [...].

    Returns:
      [...]; not scaled by 1 / 1000.
    """
    eps, clean, noisy = map(jax.lax.stop_gradient, (eps, clean, noisy))
    rows = {name: at(row, times) for name, row in step_rows(tables()).items()}
    mean, log_variance, _ = moments(eps, fraction, noisy, rows)
    least = rows["posterior_log_variance_clipped"]
    true = rows["posterior_mean_coef1"] * clean + rows["posterior_mean_coef2"] * noisy
    off = (true - mean) ** 2 * jnp.exp(-log_variance)
    divergence = 0.5 * (log_variance - least - 1 + jnp.exp(least - log_variance) + off)
    nats = jnp.where(times[..., None] == 0, -_log_bin(clean, mean, log_variance), divergence)
    return jnp.mean(nats, axis=-1) / math.log(2)


def _log_bin(x: jax.Array, mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """Log of a Gaussian's mass in the bin around x."""
    rate = jnp.exp(-0.5 * log_variance)
    below = _normal_cdf(rate * (x - mean + BIN))
    above = _normal_cdf(rate * (x - mean - BIN))
    log = lambda p: jnp.log(jnp.maximum(p, 1e-12))
    inside = log(below - above)
    return jnp.where(x < -EDGE, log(below), jnp.where(x > EDGE, log(1 - above), inside))


def _normal_cdf(x: jax.Array) -> jax.Array:
    """The tanh approximation that published code uses."""
    return 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
