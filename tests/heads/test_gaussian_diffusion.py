"""Tests of bar_jax/heads/gaussian_diffusion.py; the golden cases test the tables."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.heads import gaussian_diffusion as diffusion

TIMES = np.array([0, 1, 17, 500, 998, 999])
CHANNELS = 5


@pytest.fixture(scope="module")
def arrays():
    """eps, fraction, clean, noise: [6, 5], the clean tokens inside and outside of +-1."""
    return np.random.default_rng(0).normal(size=(4, TIMES.size, CHANNELS)).astype(np.float32)


def test_recover_takes_away_the_noise_that_was_added(arrays):
    _, _, clean, noise = arrays
    noisy = diffusion.add_noise(clean, noise, TIMES)
    # At t = 999 next to nothing of the token is left.
    scale = diffusion.tables().sqrt_recip_alphas_cumprod[TIMES][:, None]
    error = np.abs(diffusion.recover(noisy, noise, TIMES) - clean)
    assert np.all(error < 1e-6 * scale)


def test_signal_to_noise_is_the_ratio_of_the_variances():
    kept = np.cumprod(1 - diffusion.cosine_betas())[TIMES]
    np.testing.assert_allclose(diffusion.signal_to_noise(TIMES), kept / (1 - kept), rtol=1e-5)


def test_respaced_steps_keep_the_variance_of_the_whole_schedule():
    """Of T steps the i-th goes from the kept step i - 1 to i: products of alphas agree."""
    whole, some = diffusion.tables(), diffusion.tables(7)
    assert some.timesteps[0] == 0 and some.timesteps[-1] == 999
    expected = whole.alphas_cumprod[some.timesteps]
    np.testing.assert_allclose(np.cumprod(1 - some.betas), expected, rtol=1e-8)


def test_one_step_of_all_is_the_first():
    assert diffusion.tables(1).timesteps.tolist() == [0]
    assert np.all(np.isfinite(diffusion.tables(1).posterior_log_variance_clipped))


def true_step(clean, noise, times):
    """Mean and variance of q(x_{t-1} | x_t, x_0) by Bayes' rule, float64."""
    betas = diffusion.cosine_betas()
    kept, before = np.cumprod(1 - betas)[times], np.cumprod(1 - betas)[np.maximum(times - 1, 0)]
    beta = betas[times]
    noisy = np.sqrt(kept)[:, None] * clean + np.sqrt(1 - kept)[:, None] * noise
    variance = 1 / (1 / (1 - before) + (1 - beta) / beta)
    mean = (np.sqrt(before) / (1 - before))[:, None] * clean
    mean += (np.sqrt(1 - beta) / beta)[:, None] * noisy
    return mean * variance[:, None], variance, beta


def test_the_right_noise_gives_the_true_step_back(arrays):
    """eps = noise: p's mean is q's, and a fraction of -1 or 1 gives the two bounds."""
    _, _, clean, noise = arrays[:, 2:4].astype(np.float64)
    times = TIMES[2:4]
    mean, variance, beta = true_step(clean, noise, times)
    rows = {n: diffusion.at(r, times) for n, r in diffusion.step_rows(diffusion.tables()).items()}
    noisy = diffusion.add_noise(clean, noise, times)
    for fraction, expected in ((-1.0, variance), (1.0, beta)):
        found = diffusion.moments(noise, jnp.full_like(clean, fraction), noisy, rows)
        np.testing.assert_allclose(found.mean, mean, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            found.log_variance, np.log(expected)[:, None] + 0 * clean, rtol=1e-5
        )


def test_the_variational_term_is_zero_for_the_true_step(arrays):
    _, _, clean, noise = arrays[:, 1:5]
    noisy = diffusion.add_noise(clean, noise, TIMES[1:5])
    fraction = -jnp.ones_like(clean)
    found = diffusion.variational_bits(noise, fraction, clean, noisy, TIMES[1:5])
    np.testing.assert_allclose(found, 0, atol=1e-3)


def test_the_variational_term_is_the_kl_divergence_in_bits(arrays):
    """Of two Gaussians, channel by channel, in float64."""
    eps, fraction, clean, noise = arrays[:, 2:5].astype(np.float64)
    times = TIMES[2:5]
    true, variance, beta = true_step(clean, noise, times)
    kept = np.cumprod(1 - diffusion.cosine_betas())[times][:, None]
    before = np.cumprod(1 - diffusion.cosine_betas())[times - 1][:, None]
    noisy = np.sqrt(kept) * clean + np.sqrt(1 - kept) * noise
    guess = (noisy - np.sqrt(1 - kept) * eps) / np.sqrt(kept)
    beta, variance = beta[:, None], variance[:, None]
    mean = np.sqrt(before) * beta / (1 - kept) * guess
    mean += (1 - before) * np.sqrt(1 - beta) / (1 - kept) * noisy
    share = (fraction + 1) / 2
    own = np.exp(share * np.log(beta) + (1 - share) * np.log(variance))
    nats = 0.5 * (np.log(own / variance) - 1 + (variance + (true - mean) ** 2) / own)
    found = diffusion.variational_bits(
        *(x.astype(np.float32) for x in (eps, fraction, clean, noisy)), times
    )
    np.testing.assert_allclose(found, nats.mean(axis=1) / math.log(2), rtol=2e-3)


@pytest.mark.parametrize("x, edge", [(0.3, None), (-1.2, "below"), (1.3, "above")])
def test_the_first_step_is_the_mass_of_a_bin(x, edge):
    """At t = 0: 2 / 255 wide inside +-1, open at the ends; the true step's standard deviation."""
    times, clean = np.array([0]), np.full((1, 1), x, np.float32)
    log_variance = diffusion.tables().posterior_log_variance_clipped[0]
    spread, noise = math.exp(log_variance / 2), np.full((1, 1), 0.4, np.float32)
    noisy = diffusion.add_noise(clean, noise, times)
    # The mean is x_0 as it is recovered, off by what eps is off.
    table = diffusion.tables()
    off = 0.1 * table.sqrt_recipm1_alphas_cumprod[0]
    phi = lambda v: 0.5 * math.erfc(-v / spread / math.sqrt(2))  # noqa: E731
    low = 0 if edge == "below" else phi(off - 1 / 255)
    high = 1 if edge == "above" else phi(off + 1 / 255)
    found = diffusion.variational_bits(noise + 0.1, -jnp.ones((1, 1)), clean, noisy, times)
    np.testing.assert_allclose(found, -math.log2(high - low), rtol=5e-3, atol=1e-3)


def test_the_variational_term_trains_the_variance_alone(arrays):
    total = lambda *parts: jnp.sum(diffusion.variational_bits(*parts, TIMES))  # noqa: E731
    eps, fraction, clean, noise = map(jnp.asarray, arrays)
    noisy = diffusion.add_noise(clean, noise, TIMES)
    grads = jax.grad(total, argnums=(0, 1, 2, 3))(eps, fraction, clean, noisy)
    assert [bool(np.any(g != 0)) for g in grads] == [False, True, False, False]
    assert np.all(np.isfinite(grads[1]))
