"""Tests of bar_jax/generators/mar.py; the golden cases test the network's numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from bar_jax.generators import mask_ratio
from bar_jax.generators.bidirectional import Transformer
from bar_jax.generators.mar import MAR
from bar_jax.heads.diffusion import DiffusionHead
from bar_jax.runtime import mesh as mesh_lib

pytestmark = pytest.mark.slow
LENGTH, CHANNELS, CLASSES, LEVELS = 10, 3, 4, 2


def make(dropout=0.0, **changes):
    part = functools.partial(Transformer, width=16, heads=2, dropout=dropout)
    head = DiffusionHead(CHANNELS, width=8, depth=1, timesteps_per_token=LEVELS)
    options = {"class_repeats": 2, "mask_ratio_min": 0.5} | changes
    return MAR(LENGTH, CLASSES, part(depth=2), part(depth=1), head, **options)


@functools.cache
def params():
    """Random parameters: as initialised, the head predicts nothing."""
    module, key = make(), jax.random.key(0)
    init = functools.partial(module.init, method=module.initialize)
    y, labels = jnp.zeros((1, LENGTH, CHANNELS)), jnp.zeros(1, jnp.int32)
    shapes = meta.unbox(jax.eval_shape(init, key, y, labels, key[None]))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) / 3, jnp.float32), shapes)


@pytest.fixture(scope="module")
def y():
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, LENGTH, CHANNELS)), jnp.float32)


@pytest.fixture
def draws(key):
    """Seven tokens are hidden."""
    drawn = make().draw(jax.random.split(key, 2))
    return drawn.replace(mask_ratio=jnp.array([0.65, 0.95]))


LABELS = jnp.array([1, CLASSES])
context = jax.jit(lambda p, *a: make().apply({"params": p}, *a, method=MAR.context))
predict = jax.jit(lambda p, *a: make().apply({"params": p}, *a, method=MAR.predict))


def test_the_first_of_the_order_are_hidden_as_many_as_the_first_example_says(y, draws):
    _, hidden = context(params(), y, LABELS, draws)
    expected = np.zeros((2, LENGTH), bool)
    np.put_along_axis(expected, np.asarray(draws.order[:, :7]), True, axis=1)
    np.testing.assert_array_equal(hidden, expected)


@pytest.mark.parametrize("hidden", [True, False])
def test_known_tokens_reach_every_vector_and_hidden_ones_none(y, draws, hidden):
    token = draws.order[0, 6 if hidden else 7]
    z, _ = context(params(), y, LABELS, draws)
    changed, _ = context(params(), y.at[0, token].add(1), LABELS, draws)
    same = np.all(z == changed, axis=-1)
    assert np.all(same[1]) and np.all(same[0] == hidden)


def test_empty_slots_of_the_encoder_change_nothing(y, draws):
    """A larger least share of hidden tokens leaves no slot empty."""
    full = make(mask_ratio_min=0.7)
    z = jax.jit(lambda p: full.apply({"params": p}, y, LABELS, draws, method=full.context)[0])
    np.testing.assert_allclose(z(params()), context(params(), y, LABELS, draws)[0], atol=2e-5)


def test_no_class_is_a_vector_of_its_own(y, draws):
    other = params() | {"no_class": params()["no_class"] + 1}
    z, changed = (context(p, y, LABELS, draws)[0] for p in (params(), other))
    assert np.all(z[0] == changed[0]) and np.all(np.any(z[1] != changed[1], axis=-1))


def test_prediction(y, draws):
    found = predict(params(), y, LABELS, draws)
    np.testing.assert_array_equal(found.weight, [7 * LEVELS] * 2)
    assert found.clean.shape == (LEVELS, 2, LENGTH, CHANNELS) and found.snr.shape == (LEVELS, 2)
    given = np.asarray(draws.order[0, 7:])
    np.testing.assert_array_equal(found.clean[:, 0, given], np.stack([y[0, given]] * LEVELS))
    recovered = np.any(found.clean[:, 0] != y[:1], axis=-1)
    np.testing.assert_array_equal(recovered.sum(axis=1), [7] * LEVELS)


def test_the_loss_counts_hidden_tokens_alone(y, draws):
    """Noise of a given token is of no matter, that of a hidden one is."""

    def loss(token):
        noise = draws.head.noise.at[0, :, token].add(1)
        other = draws.replace(head=draws.head.replace(noise=noise))
        return predict(params(), y, LABELS, other).loss

    before = predict(params(), y, LABELS, draws).loss
    np.testing.assert_array_equal(before, loss(draws.order[0, 7]))
    np.testing.assert_array_equal(before != loss(draws.order[0, 6]), [True, False])


def test_shared_times_give_each_draw_its_ratio_of_signal_to_noise(key, y):
    draws = make(shared_time=True).draw(jax.random.split(key, 2))
    times = draws.head.times
    assert np.all(times == times[..., :1])
    kept = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    kept = (kept[1:] / kept[0])[np.asarray(times[..., 0])]
    found = predict(params(), y, LABELS, draws).snr
    np.testing.assert_allclose(found, (kept / (1 - kept)).T, rtol=1e-3)


def test_a_batchs_mask_ratio_has_the_distribution_of_an_examples(key):
    """One for all of its examples: never below the least, on average that of the cut normal."""
    keys = jax.random.split(key, 2)
    draw = jax.jit(jax.vmap(lambda batch_key: make().draw(keys, batch_key).mask_ratio))
    ratios = draw(jax.random.split(jax.random.key(1), 1000))
    np.testing.assert_array_equal(ratios[:, 0], ratios[:, 1])
    mean, deviation = mask_ratio.mean_std(make().mask_ratio_min)
    assert make().mask_ratio_min <= ratios.min() and ratios.max() <= 1
    assert abs(ratios[:, 0].mean() - mean) < 5 * deviation / 1000**0.5


def test_draws_of_an_example_depend_on_its_key_only(key):
    draw, keys = jax.jit(make().draw), jax.random.split(key, 3)
    together, alone = draw(keys), draw(keys[1:2])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1:2], b), together, alone)
    assert len(np.unique(together.mask_ratio)) == 3
    assert np.all(np.sort(together.order, axis=1) == np.arange(LENGTH))


def test_dropout_acts_with_its_key_alone(key, y, draws):
    module = make(dropout=0.5)

    @jax.jit
    def z(rngs):
        given = y, LABELS, draws
        return module.apply({"params": params()}, *given, rngs=rngs, method=module.context)[0]

    np.testing.assert_allclose(z({}), context(params(), y, LABELS, draws)[0], atol=2e-5)
    one, other = (z({"dropout": k}) for k in jax.random.split(key))
    assert np.any(one != other)


@pytest.mark.parametrize(
    "layout", [pytest.param((8, 1, 1), marks=pytest.mark.exhaustive), (2, 2, 2)]
)
def test_a_mesh_changes_nothing(key, layout):
    module = make()
    y = jnp.asarray(np.random.default_rng(2).normal(size=(8, LENGTH, CHANNELS)), jnp.float32)
    labels, draws = jnp.arange(8) % CLASSES, module.draw(jax.random.split(key, 8))
    expected = predict(params(), y, labels, draws)
    init = functools.partial(module.init, method=module.initialize)
    mesh = mesh_lib.make_mesh(*layout)
    boxed = jax.eval_shape(init, key, y, labels, jax.random.split(key, 8))["params"]
    with jax.set_mesh(mesh):
        cut = jax.device_put((y, labels, draws), mesh_lib.batch_sharding(mesh))
        found = predict(jax.device_put(params(), mesh_lib.shardings(mesh, boxed)), *cut)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected
    )
