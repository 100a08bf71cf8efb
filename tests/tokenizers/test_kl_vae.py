"""Tests of bar_jax/tokenizers/kl_vae.py; parity with the published one: tests/golden_kl_vae.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from bar_jax.tokenizers.kl_vae import KLVAE, attention_levels, kl_divergence

TINY = KLVAE(
    image_size=8, width=32, multipliers=(1, 2), blocks=1, channels=3, attention_levels=(), scale=0.5
)


def moments(mean, log_variance, batch=1, tokens=2):
    """[batch, tokens, 2 * 3], the same for every token."""
    row = np.repeat(np.float32([mean, log_variance]), 3)
    return jnp.asarray(np.tile(row, (batch, tokens, 1)))


@pytest.mark.parametrize(
    "multipliers, resolution, levels",
    [((1, 1, 2, 2, 4), 16, (4,)), ((1, 1, 2, 2, 4), 256, (0,)), ((1, 2), 16, ())],
)
def test_attention_stands_where_256_px_have_become_that_many(multipliers, resolution, levels):
    assert attention_levels(multipliers, resolution) == levels


def test_shapes_and_types(key):
    """8 px and two levels: 4 x 4 tokens; both ways are float32 whatever is computed in."""
    vae = TINY.clone(dtype=jnp.bfloat16)
    images = jnp.zeros((2, 8, 8, 3))

    def both(key):
        params = vae.init(key, images)
        codes = vae.apply(params, images, method=vae.encode)
        return codes, vae.apply(params, vae.latents(codes), method=vae.decode)

    codes, decoded = jax.eval_shape(both, key)
    assert (codes.shape, codes.dtype) == ((2, 16, 6), jnp.float32)
    assert (decoded.shape, decoded.dtype) == ((2, 8, 8, 3), jnp.float32)


def test_each_example_has_noise_of_its_own_key(key):
    codes, keys = moments(0.3, -1.0, batch=3), jax.random.split(key, 3)
    drawn = TINY.latents(codes, keys)
    backwards = TINY.latents(codes, keys[::-1])
    np.testing.assert_array_equal(drawn, backwards[::-1])
    assert len(np.unique(drawn)) == drawn.size


def test_samples_have_the_posteriors_mean_and_variance_times_the_scale(key):
    drawn = TINY.latents(moments(3.0, np.log(4.0), tokens=5000), key[None])
    values = np.asarray(drawn).ravel()  # 15,000 of them
    assert values.mean() == pytest.approx(0.5 * 3.0, abs=5 * 0.5 * 2 / 15000**0.5)
    assert values.std() == pytest.approx(0.5 * 2.0, rel=0.03)


def test_without_a_key_there_is_no_noise():
    np.testing.assert_array_equal(TINY.latents(moments(3.0, 20.0)), np.full((1, 2, 3), 1.5))


@pytest.mark.parametrize("log_variance, clamped", [(-99.0, -30.0), (99.0, 20.0)])
def test_log_variances_are_clamped(key, log_variance, clamped):
    """In what is drawn and in the divergence; the moments stay as they are."""
    given, told = moments(0.0, log_variance), moments(0.0, clamped)
    for function in (kl_divergence, lambda codes: TINY.latents(codes, key[None])):
        np.testing.assert_array_equal(function(given), function(told))


def test_kl_divergence_is_the_integral():
    """Of each number, the mean of log q - log p under q, integrated; 6 of them in an image."""
    mean, deviation = 0.7, 0.4
    x, dx = np.linspace(-5, 5, 100_001, retstep=True)
    q = norm(mean, deviation)
    expected = 6 * np.sum(q.pdf(x) * (q.logpdf(x) - norm.logpdf(x))) * dx
    found = kl_divergence(moments(mean, 2 * np.log(deviation), batch=2))
    np.testing.assert_allclose(found, [expected] * 2, rtol=1e-5)
