"""The pure functions of bar_jax/heads/, with and without jit, against NumPy in float64."""

import functools

import numpy as np

from bar_jax.heads import gaussian_diffusion, linear, logits, masked_bit
from tests.variants import against_numpy

RNG = np.random.default_rng(0)
LOGITS, UNIFORM = RNG.normal(size=(4, 5, 2)), RNG.uniform(size=(4, 5, 2))
BITS = RNG.integers(0, 2, (4, 5), np.uint8)
CLEAN, NOISE = RNG.normal(size=(2, 3, 4))
FRACTION, NOISY = RNG.uniform(-1, 1, (3, 4)), RNG.normal(size=(3, 4))
TIMES = np.array([1, 500, 998])
CODES = np.arange(32)
softmax = lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def kept_share(times):
    """alpha_bar of the cosine schedule, as the product of 1 - beta, beta at most 0.999."""
    at = lambda t: np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    t = np.arange(1000)
    betas = np.minimum(1 - at(t + 1) / at(t), 0.999)
    return np.cumprod(1 - betas)[times][..., None]


def noised(clean, noise, times):
    share = kept_share(times)
    return np.sqrt(share) * clean + np.sqrt(1 - share) * noise


def hidden(bits, uniform, ratio=0.6):
    """Three of five bits."""
    chosen = np.argsort(uniform, axis=-1) < 3
    return np.where(chosen, masked_bit.HIDDEN, bits), chosen, np.full(4, ratio)


def divergence(eps, fraction, clean, noisy, times):
    """KL between two Gaussians, in bits: the posterior of x_0, and what the network says."""
    now, before = kept_share(times), kept_share(times - 1)
    beta = 1 - now / before
    mean = lambda x0: (
        beta * np.sqrt(before) * x0 + (1 - before) * np.sqrt(1 - beta) * noisy
    ) / (1 - now)  # fmt: skip
    least = np.log(beta * (1 - before) / (1 - now))
    share = (fraction + 1) / 2
    log_variance = share * np.log(beta) + (1 - share) * least
    guess = (noisy - np.sqrt(1 - now) * eps) / np.sqrt(now)
    off = (mean(clean) - mean(guess)) ** 2 / np.exp(log_variance)
    nats = 0.5 * (log_variance - least - 1 + np.exp(least - log_variance) + off)
    return nats.mean(-1) / np.log(2)


TestVariants = against_numpy(
    [
        ("gumbel", logits.gumbel, (UNIFORM,), lambda u: -np.log(-np.log(u))),
        ("bit_cross_entropy", logits.bit_cross_entropy, (LOGITS, BITS),
         lambda x, bits: -np.log(np.take_along_axis(softmax(x), bits[..., None], -1))[..., 0]),
        ("bits_to_code", linear.bits_to_code, (BITS,), lambda bits: bits @ [16, 8, 4, 2, 1]),
        ("code_to_bits", functools.partial(linear.code_to_bits, n=5), (CODES,),
         lambda code: np.array([[int(bit) for bit in f"{value:05b}"] for value in code])),
        ("logit_normal_ratio", masked_bit.logit_normal_ratio, (NOISE,),
         lambda z: 1 / (1 + np.exp(0.8 * z))),
        ("hide", lambda bits, uniform: masked_bit.hide(bits, np.full(4, 0.6, np.float32), uniform),
         (BITS, UNIFORM[..., 0]), hidden),
        ("add_noise", gaussian_diffusion.add_noise, (CLEAN, NOISE, TIMES), noised),
        ("recover", lambda clean, noise, times: gaussian_diffusion.recover(
            gaussian_diffusion.add_noise(clean, noise, times), noise, times
         ), (CLEAN[:2], NOISE[:2], TIMES[:2]), lambda clean, noise, times: clean),
        ("signal_to_noise", gaussian_diffusion.signal_to_noise, (TIMES,),
         lambda times: (kept_share(times) / (1 - kept_share(times)))[..., 0]),
        ("variational_bits", gaussian_diffusion.variational_bits,
         (NOISE[:2], FRACTION[:2], CLEAN[:2], NOISY[:2], TIMES[:2]), divergence),
    ]
)  # fmt: skip
