"""Tests of bar_jax/heads/diffusion.py; the golden cases test the network's numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from bar_jax.heads import diffusion, gaussian_diffusion
from bar_jax.nn.decoding import decoding_params

CHANNELS, TOLD, BATCH, STEPS = 3, 6, 4, 6
HEAD = diffusion.DiffusionHead(CHANNELS, width=8, depth=2, timesteps_per_token=5)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    x, z = (jnp.asarray(rng.normal(size=(BATCH, n)), jnp.float32) for n in (CHANNELS, TOLD))
    return x, jnp.array([0, 3, 500, 999]), z


@pytest.fixture(scope="module")
def params(inputs):
    """Random parameters: as initialised, every output is 0."""
    shapes = meta.unbox(jax.eval_shape(HEAD.init, jax.random.key(0), *inputs))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) / 4, jnp.float32), shapes)


def test_a_fresh_head_predicts_no_noise(key, inputs):
    fresh = meta.unbox(HEAD.init(key, *inputs))
    assert np.all(HEAD.apply(fresh, *inputs) == 0)
    assert 0.01 < np.std(fresh["params"]["time_embedding"]["first"]["kernel"]) < 0.03


def sample(params, z, noise, guidance, temperature=0.7):
    return diffusion.sample(
        HEAD,
        decoding_params(params, jnp.float32),
        z,
        steps=STEPS,
        guidance=guidance,
        temperature=temperature,
        first=noise[0],
        noise=noise[1:],
    )


@pytest.mark.parametrize("rows_ahead", [1, 10, 1000])
@pytest.mark.parametrize("guided", [False, True])
def test_steps_back_one_by_one(inputs, params, guided, rows_ahead, monkeypatch):
    """The whole network at every step, with the tables of the respaced schedule."""
    monkeypatch.setattr(diffusion, "ROWS_AHEAD", rows_ahead)
    z = inputs[2]
    count = BATCH // 2 if guided else BATCH
    noise = np.random.default_rng(1).normal(size=(STEPS + 1, count, CHANNELS)).astype(np.float32)
    table, x = gaussian_diffusion.tables(STEPS), noise[0]
    apply = jax.jit(HEAD.apply)
    for i, step in enumerate(reversed(range(STEPS))):
        both = jnp.concatenate([x, x]) if guided else x
        times = jnp.full(len(both), table.timesteps[step])
        out = np.asarray(apply({"params": params}, both, times, z), np.float64)
        eps, fraction = out[:count, 0], out[:count, 1]
        if guided:
            eps = out[count:, 0] + 3 * (eps - out[count:, 0])
        clean = (x - np.sqrt(1 - table.alphas_cumprod[step]) * eps) / np.sqrt(
            table.alphas_cumprod[step]
        )
        x = table.posterior_mean_coef1[step] * clean + table.posterior_mean_coef2[step] * x
        if step:
            least, most = table.posterior_log_variance_clipped[step], np.log(table.betas[step])
            variance = np.exp(least + (fraction + 1) / 2 * (most - least))
            x += 0.7 * np.sqrt(variance) * noise[1 + i]
        x = x.astype(np.float32)
    run = jax.jit(functools.partial(sample, guidance=3.0 if guided else None))
    np.testing.assert_allclose(run(params, z, noise), x, rtol=1e-3)


def test_draws_of_a_token(key):
    draws = HEAD.draws(key, 2000)
    assert draws.times.shape == (5, 2000) and draws.noise.shape == (5, 2000, CHANNELS)
    assert draws.times.min() >= 0 and draws.times.max() <= 999
    np.testing.assert_allclose(np.mean(draws.times), 499.5, atol=15)
    np.testing.assert_allclose(np.std(draws.noise), 1, atol=0.02)


def test_tokens_may_share_their_time(key):
    times = HEAD.draws(key, 50, shared_time=True).times
    np.testing.assert_array_equal(times, np.broadcast_to(times[:, :1], (5, 50)))
    assert len(np.unique(times)) > 1


def test_the_loss_is_the_error_of_the_noise_and_the_variational_term(inputs, params):
    clean, times, z = inputs
    noise = jnp.asarray(np.random.default_rng(2).normal(size=clean.shape), jnp.float32)
    found = HEAD.apply(
        {"params": params}, z, clean, diffusion.Draws(times, noise), method=HEAD.denoise
    )
    noisy = gaussian_diffusion.add_noise(clean, noise, times)
    eps = HEAD.apply({"params": params}, noisy, times, z)[:, 0]
    error = np.mean((np.asarray(noise - eps)) ** 2, axis=-1)
    np.testing.assert_allclose(found.loss - found.variational, error, rtol=1e-3)
    expected = gaussian_diffusion.recover(noisy, eps, times)
    np.testing.assert_allclose(found.clean, expected, rtol=1e-5)


def test_remat_changes_nothing(inputs, params):
    total = lambda head: jax.jit(  # noqa: E731
        jax.grad(lambda p: jnp.sum(head.apply({"params": p}, *inputs) ** 2))
    )(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        total(HEAD),
        total(HEAD.clone(remat=True)),
    )
