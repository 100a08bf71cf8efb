"""Tests of bar_jax/generators/flow.py; the golden cases test published arithmetic."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.generators import flow
from bar_jax.nn.guidance import guided


def test_times_of_euler_are_even():
    np.testing.assert_allclose(flow.sampling_times("euler", 4), [1, 0.75, 0.5, 0.25, 0])


def test_times_of_euler_maruyama_are_even_up_to_the_last_step():
    expected = [1, 0.76, 0.52, 0.28, 0.04, 0]
    np.testing.assert_allclose(flow.sampling_times("euler_maruyama", 5), expected)


@pytest.mark.parametrize("sampler", ["euler", "euler_maruyama"])
def test_one_step_leads_from_noise_to_data(sampler):
    np.testing.assert_array_equal(flow.sampling_times(sampler, 1), [1, 0])


def test_euler_solves_a_linear_equation():
    """dx / dt = a x: each of n steps multiplies by 1 - a / n, in the limit the whole by exp(-a)."""
    a, steps, x = 0.7, 200, jnp.array([[1.0, -2.0]])
    times = flow.sampling_times("euler", steps)
    found, count = flow.solve("euler", times, lambda x, i, n: (a * x, n + 1), x, None, 0)
    np.testing.assert_allclose(found, np.asarray(x) * (1 - a / steps) ** steps, rtol=1e-5)
    np.testing.assert_allclose(found, np.asarray(x) * np.exp(-a), rtol=2e-3)
    assert count == steps


def test_a_flow_is_asked_at_the_time_of_its_step():
    """dx / dt = 2 t: the sum over the times that steps begin at."""
    times = flow.sampling_times("euler", 4)
    table = jnp.asarray(times, jnp.float32)
    flow_at = lambda x, i, carry: (jnp.full_like(x, 2 * table[i]), carry)  # noqa: E731
    found, _ = flow.solve("euler", times, flow_at, jnp.zeros(3), None, None)
    np.testing.assert_allclose(found, np.full(3, -2 * (1 + 0.75 + 0.5 + 0.25) / 4), rtol=1e-6)


def _gaussian_flow(x, t, std):
    """E[eps - data | x_t] of data of N(0, std^2)."""
    return x * (t - (1 - t) * std**2) / ((1 - t) ** 2 * std**2 + t**2)


def test_score_of_a_gaussian():
    t, std, x = 0.3, 0.5, np.array([-1.0, 0.2, 2.0])
    expected = -x / ((1 - t) ** 2 * std**2 + t**2)
    np.testing.assert_allclose(flow.score(_gaussian_flow(x, t, std), x, t), expected, rtol=1e-6)


def test_mean_step_of_euler_maruyama():
    """Without noise: the drift v - t * score, of data that is the one point c."""
    t, after, c, x = 0.5, 0.4, 3.0, np.array([0.5, 2.0])
    score = -(x - (1 - t) * c) / t**2
    expected = x + ((x - c) / t - t * score) * (after - t)
    found = flow.euler_maruyama((x - c) / t, x, t, after, 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_noise_of_a_step_has_variance_2_t_dt():
    step = lambda eps: flow.euler_maruyama(1.0, 2.0, 0.5, 0.3, eps)  # noqa: E731
    np.testing.assert_allclose(step(2.0) - step(0.0), 2 * np.sqrt(2 * 0.5 * 0.2), rtol=1e-6)


def test_every_step_but_the_last_has_its_own_noise(key):
    """Against a loop in float64."""
    start, *noise = jax.random.normal(key, (4, 3))
    noise = jnp.stack(noise)
    times = flow.sampling_times("euler_maruyama", 4)
    table = jnp.asarray(times, jnp.float32)
    flow_at = lambda x, i, carry: (_gaussian_flow(x, table[i], 0.5), carry)  # noqa: E731
    found, _ = flow.solve("euler_maruyama", times, flow_at, start, noise, None)
    x = np.asarray(start, np.float64)
    for i, (t, after) in enumerate(itertools.pairwise(times)):
        v = _gaussian_flow(x, t, 0.5)
        x = x + (v + (((1 - t) * v + x) / t) * t) * (after - t)
        if i < 3:
            x = x + np.sqrt(2 * t * (t - after)) * np.asarray(noise[i])
    np.testing.assert_allclose(found, x, rtol=1e-4)


@pytest.mark.parametrize("sampler", ["euler", "euler_maruyama"])
def test_gaussian_noise_becomes_gaussian_data(key, sampler):
    """Both equations have the same marginals: samples end with the data's standard deviation."""
    steps, std = 200, 0.5
    times = flow.sampling_times(sampler, steps)
    table = jnp.asarray(times, jnp.float32)
    noise = jax.random.normal(key, (steps, 20_000))
    flow_at = lambda x, i, carry: (_gaussian_flow(x, table[i], std), carry)  # noqa: E731
    found, _ = flow.solve(sampler, times, flow_at, noise[0], noise[1:], None)
    assert np.std(found) == pytest.approx(std, rel=0.03)
    assert np.mean(found) == pytest.approx(0, abs=0.02)


def test_guidance_on_flows_is_guidance_on_drifts(key):
    conditional, unconditional, x = jax.random.normal(key, (3, 4))
    both = jnp.concatenate([conditional, unconditional])
    of_flows = flow.drift(guided(both, 2.7), x, 0.4)
    drifts = flow.drift(both, jnp.concatenate([x, x]), 0.4)
    np.testing.assert_allclose(of_flows, guided(drifts, 2.7), rtol=1e-4, atol=1e-5)
