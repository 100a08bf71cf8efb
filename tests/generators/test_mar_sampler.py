"""Tests of bar_jax/generators/mar_sampler.py; the golden cases test the numbers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.generators import mar_sampler
from bar_jax.generators.request import Request
from bar_jax.generators.settings import Settings
from bar_jax.runtime import mesh as mesh_lib
from tests.generators.test_mar import CHANNELS, CLASSES, LENGTH, make, params

pytestmark = pytest.mark.slow


def small_params():
    """Vectors of hundreds would let the last step's numbers overflow."""
    return jax.tree.map(lambda p: p / 2, params())


@functools.cache
def sampler(guided=True, iterations=4, steps=3):
    settings = Settings(guided, iterations=iterations, steps=steps)
    asked = lambda labels, keys, scale: Request(labels, keys, scale, settings=settings)
    return jax.jit(lambda params, *numbers: make().sample(params, asked(*numbers)))


def assert_close(one, other):
    one, other = np.asarray(one), np.asarray(other)
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize("length, iterations", [(256, 64), (256, 256), (64, 4), (16, 40), (5, 1)])
def test_how_many_tokens_stay_hidden(length, iterations):
    """The published loop, over a mask."""
    mask, expected = np.ones(length), []
    for step in range(iterations):
        planned = np.floor(length * np.cos(math.pi / 2.0 * (step + 1) / iterations))
        left = np.maximum(1, np.minimum(mask.sum() - 1, planned))
        mask = (np.arange(length) < left).astype(float)
        expected.append(int(left))
    assert mar_sampler.hidden_after(length, iterations) == tuple(expected)


def test_guidance_grows_with_the_share_of_revealed_tokens():
    """10 tokens, 9, 7, 3 and 1 of them hidden after each of 4 iterations."""
    request = Request(jnp.zeros(1, int), None, 3.0, settings=Settings(True, iterations=4))
    np.testing.assert_allclose(mar_sampler.guidance_scales(request, 10), [1.2, 1.6, 2.4, 2.8])


@pytest.mark.parametrize("iterations", [1, 4, 30])
def test_every_token_is_drawn_once(key, iterations):
    drawn = jax.eval_shape(
        sampler(True, iterations), small_params(), jnp.zeros(2, int), jax.random.split(key, 2), 3.0
    )
    assert drawn.shape == (2, LENGTH, CHANNELS)
    plan = mar_sampler._plan(LENGTH, iterations)
    known = np.cumsum([0, *plan.counts])
    assert plan.known == known[:-1].tolist() and known[-1] == LENGTH and min(plan.counts) > 0
    assert np.all(np.array(plan.known) <= plan.slots)


@pytest.mark.parametrize("sizes", [pytest.param(1, marks=pytest.mark.exhaustive), 3])
def test_empty_slots_of_the_encoder_change_nothing(key, sizes, monkeypatch):
    arguments = small_params(), jnp.array([1, 3]), jax.random.split(key, 2), 3.0
    expected = sampler()(*arguments)
    monkeypatch.setattr(mar_sampler, "SIZES", sizes)
    sampler.cache_clear()
    assert_close(sampler()(*arguments), expected)
    sampler.cache_clear()


def test_a_scale_of_one_is_no_guidance(key):
    """u + 1 (c - u) = c, in every iteration."""
    arguments = small_params(), jnp.array([1, 3]), jax.random.split(key, 2), 1.0
    assert_close(sampler(True)(*arguments), sampler(False)(*arguments))


def test_guidance_and_class_change_the_tokens(key):
    run = lambda label, scale: sampler()(small_params(), jnp.array([label]), key[None], scale)  # noqa: E731
    assert np.any(run(1, 3.0) != run(2, 3.0)) and np.any(run(1, 3.0) != run(1, 2.0))
    assert_close(run(CLASSES, 3.0), run(CLASSES, 1.0))


def test_an_example_is_the_same_alone_and_in_a_batch(key):
    labels, keys = jnp.array([0, 3]), jax.random.split(key, 2)
    together = sampler()(small_params(), labels, keys, 3.0)
    assert_close(sampler()(small_params(), labels[1:], keys[1:], 3.0), together[1:])
    assert np.any(together[0] != sampler()(small_params(), labels[:1], keys[1:], 3.0)[0])


def test_a_mesh_changes_nothing(key):
    labels, keys = jnp.arange(8) % CLASSES, jax.random.split(key, 8)
    expected = sampler()(small_params(), labels, keys, 3.0)
    mesh = mesh_lib.make_mesh(4, 2, 1)
    with jax.set_mesh(mesh):
        cut = jax.device_put((labels, keys), mesh_lib.batch_sharding(mesh))
        assert_close(sampler()(small_params(), *cut, 3.0), expected)
