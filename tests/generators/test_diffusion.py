"""Tests of bar_jax/generators/diffusion.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from bar_jax.generators.causal import CausalTransformer
from bar_jax.generators.diffusion import CausalDiffusion, sample_tokens
from bar_jax.generators.request import Request
from bar_jax.generators.settings import Settings
from bar_jax.heads import diffusion
from bar_jax.nn.decoding import decoding_params

pytestmark = pytest.mark.slow
GRID, CHANNELS, CLASSES, STEPS = (2, 3), 3, 4, 3
LENGTH = GRID[0] * GRID[1]
SIZES = {"width": 16, "depth": 2, "heads": 4, "output_width": 12, "class_repeats": 2}
TRUNK = CausalTransformer(0, GRID, CLASSES, **SIZES, channels=CHANNELS)
HOST = CausalDiffusion(TRUNK, diffusion.DiffusionHead(CHANNELS, width=8, depth=1))


@pytest.fixture(scope="module")
def inputs():
    """Tokens, labels, orders."""
    rng = np.random.default_rng(0)
    y = jnp.asarray(rng.normal(size=(2, LENGTH, CHANNELS)), jnp.float32)
    order = jnp.asarray(np.stack([rng.permutation(LENGTH) for _ in y]))
    return y, jnp.array([1, CLASSES]), order


@pytest.fixture(scope="module")
def params(inputs):
    key = jax.random.key(0)
    init = functools.partial(HOST.init, method=HOST.initialize)
    shapes = meta.unbox(jax.eval_shape(init, key, *inputs[:2], jax.random.split(key)))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) / 4, jnp.float32), shapes)


@jax.jit
def predict(params, *arguments):
    return HOST.apply({"params": params}, *arguments, method=HOST.predict)


def test_tokens_of_real_numbers_are_projected(params):
    """No table of bits, and nothing else is another."""
    bits = CausalTransformer(4, GRID, CLASSES, **SIZES)
    arguments = jnp.zeros((1, LENGTH, 4), int), jnp.zeros(1, int), jnp.arange(LENGTH)[None]
    names = meta.unbox(jax.eval_shape(bits.init, jax.random.key(0), *arguments))["params"].keys()
    assert names - params["trunk"].keys() == {"bit_embedding"}
    assert params["trunk"].keys() <= names
    assert params["trunk"]["token_proj"]["kernel"].shape == (CHANNELS, 16)


@pytest.mark.parametrize("changed", range(LENGTH))
def test_a_token_reaches_itself_and_what_is_written_after_it(params, inputs, key, changed):
    y, labels, order = inputs
    draws = HOST.draw(jax.random.split(key))
    one, other = (
        predict(params, tokens, labels, draws, order).clean
        for tokens in (y, y.at[:, changed].add(1))
    )
    same = np.all(one == other, axis=(0, 1, 3))
    np.testing.assert_array_equal(same, np.arange(LENGTH) < changed)


def test_every_token_counts(params, inputs, key):
    y, labels, _ = inputs
    found = predict(params, y, labels, HOST.draw(jax.random.split(key)))
    np.testing.assert_array_equal(found.weight, [LENGTH * HOST.head.timesteps_per_token] * 2)


def test_places_count_and_are_raster_if_not_given(params, inputs, key):
    y, labels, order = inputs
    draws = HOST.draw(jax.random.split(key))
    raster = jnp.broadcast_to(jnp.arange(LENGTH), order.shape)
    left_out, given, other = (
        predict(params, y, labels, draws, *places).loss for places in ((), (raster,), (order,))
    )
    np.testing.assert_array_equal(left_out, given)
    assert np.all(given != other)


@pytest.mark.parametrize("guided", [False, True])
def test_the_cache_changes_nothing(params, inputs, key, guided):
    """Every token anew, from what the trunk makes of the whole sequence before it."""
    _, labels, order = inputs
    noise = jax.random.normal(key, (LENGTH, STEPS + 1, 2, CHANNELS))
    settings = Settings(guided, steps=STEPS)
    request = Request(labels, None, 3.0, 0.5, settings=settings)
    small = params | {"head": jax.tree.map(lambda p: p / 4, params["head"])}

    @jax.jit
    def run(params, noise):
        return sample_tokens(HOST, params, request, order, lambda i: (noise[i, 0], noise[i, 1:]))

    tokens = run(small, noise)
    scales = 1 + 2 * jnp.arange(LENGTH) / LENGTH
    both = lambda x: jnp.concatenate([x, x]) if guided else x  # noqa: E731
    if guided:
        labels = jnp.concatenate([labels, jnp.full_like(labels, CLASSES)])
    z = jax.jit(TRUNK.apply)({"params": small["trunk"]}, both(tokens), labels, both(order))
    again = jax.jit(
        jax.vmap(
            lambda z, noise, scale: diffusion.sample(
                HOST.head,
                decoding_params(small["head"], jnp.float32),
                z,
                guidance=scale if guided else None,
                first=noise[0],
                noise=noise[1:],
                steps=STEPS,
                temperature=0.5,
            ),
            in_axes=(1, 0, 0),
            out_axes=1,
        )
    )(z, noise, scales)
    np.testing.assert_allclose(tokens, again, rtol=1e-3, atol=1e-4 * np.abs(again).max())


def test_an_example_is_the_same_alone_and_in_a_batch(params, key):
    settings = Settings(guided=True, steps=STEPS)
    asked = lambda labels, keys: Request(labels, keys, 2.0, settings=settings)  # noqa: E731
    run = jax.jit(lambda *rows: HOST.sample(params, asked(*rows)))
    labels, keys = jnp.array([0, 3]), jax.random.split(key)
    together = run(labels, keys)
    np.testing.assert_allclose(together[1:], run(labels[1:], keys[1:]), rtol=1e-3, atol=1)
    assert np.any(together[0] != run(labels[:1], keys[1:])[0])
