"""Tests of bar_jax/generators/xar.py; the golden cases test the network's numbers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from scipy import stats

from bar_jax.generators.request import Request
from bar_jax.generators.settings import Settings
from bar_jax.generators.xar import XAR
from bar_jax.generators.xar_sampler import sample_sequence
from bar_jax.nn import decoding
from bar_jax.runtime import mesh as mesh_lib

pytestmark = pytest.mark.slow
GRID, CHANNELS, CLASSES = (4, 4), 3, 5
CELLS, CELL, STEPS = 4, 4, 3
SCALE = 3.0


def make(**changes):
    sizes = dict(width=16, depth=2, heads=2, decoder_depth=1)
    return XAR(CHANNELS, GRID, 2, CLASSES, **sizes | changes)


@functools.cache
def params():
    """Random parameters of a size at which blocks, classes and times all matter."""
    module, key = make(), jax.random.key(0)
    init = functools.partial(module.init, method=module.initialize)
    y, labels = jnp.zeros((1, CELLS * CELL, CHANNELS)), jnp.zeros(1, jnp.int32)
    shapes = meta.unbox(jax.eval_shape(init, key, y, labels, key[None]))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) / 4, jnp.float32), shapes)


forward = jax.jit(lambda p, *arguments: make().apply({"params": p}, *arguments))


@functools.cache
def sampler(guided, kind):
    """(params, labels, start, noise) -> y."""

    @jax.jit
    def run(params, labels, start, noise):
        settings = Settings(bool(guided), sampler=kind, steps=STEPS)
        request = Request(labels, None, SCALE, settings=settings)
        return sample_sequence(make(), params, request, start, noise)

    return run


@pytest.fixture
def noise(key):
    """What cells start as, [cells, B, n, d], and noise of the steps [cells, steps - 1, ...]."""
    drawn = jax.random.normal(key, (CELLS, STEPS, 2, CELL, CHANNELS))
    return drawn[:, 0], drawn[:, 1:]


LABELS = jnp.array([1, 3])


def test_modulations_ahead_or_at_every_step_are_the_same(noise, monkeypatch):
    ahead = sampler(True, "euler")(params(), LABELS, *noise)
    monkeypatch.setattr(decoding, "AHEAD_BYTES", 0)
    sampler.cache_clear()
    at_every_step = sampler(True, "euler")(params(), LABELS, *noise)
    sampler.cache_clear()
    np.testing.assert_allclose(at_every_step, ahead, atol=2e-5)


def _by_whole_passes(guided, kind, start, noise):
    """Cells written with the whole sequence pushed through at every step, in float64 otherwise."""
    start, noise = np.asarray(start, np.float64), np.asarray(noise, np.float64)
    times = np.linspace(1, 0, STEPS + 1)
    if kind == "euler_maruyama":
        times = np.append(np.linspace(1, 0.04, STEPS), 0)
    y = np.zeros((2, CELLS * CELL, CHANNELS))
    flow = lambda y, *given: np.asarray(forward(params(), jnp.float32(y), *given))  # noqa: E731
    for s in range(CELLS):
        here, x = slice(s * CELL, (s + 1) * CELL), start[s]
        for i, (t, after) in enumerate(itertools.pairwise(times)):
            y[:, here] = x
            time = np.zeros((2, CELLS), np.float32)
            time[:, s] = t
            v = flow(y, LABELS, time)[:, here]
            if guided:
                u = flow(y, np.full(2, CLASSES), time)[:, here]
                v = u + (1 + (SCALE - 1) * s / (CELLS - 1)) * (v - u)
            if kind == "euler":
                x = x + (after - t) * v
                continue
            score = -((1 - t) * v + x) / t
            x = x + (v - t * score) * (after - t)
            if i < STEPS - 1:
                x = x + np.sqrt(2 * t * (t - after)) * noise[s, i]
        y[:, here] = x
    return y


@pytest.mark.parametrize(
    "guided, kind", [(False, "euler_maruyama"), (True, "euler_maruyama"), (True, "euler")]
)
def test_the_cache_changes_nothing(noise, guided, kind):
    found = sampler(guided, kind)(params(), LABELS, *noise)
    expected = _by_whole_passes(guided, kind, *noise)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_the_first_cell_is_not_guided(noise):
    without, guided = (sampler(g, "euler_maruyama")(params(), LABELS, *noise) for g in (0, 1))
    np.testing.assert_allclose(guided[:, :CELL], without[:, :CELL], rtol=1e-5, atol=1e-5)
    assert np.all(np.any(abs(guided - without)[:, CELL:] > 1e-2, axis=(1, 2)))


@pytest.mark.parametrize("changed", ["tokens", "time"])
def test_a_later_cell_changes_nothing_earlier(key, changed):
    """Of cell 2: cells 0 and 1 stay, all tokens of 2 and 3 change."""
    y = jax.random.normal(key, (2, CELLS * CELL, CHANNELS))
    time = jnp.tile(jnp.array([0.1, 0.7, 0.4, 0.6]), (2, 1))
    before = forward(params(), y, LABELS, time)
    if changed == "tokens":
        after = forward(params(), y.at[:, 2 * CELL].add(1), LABELS, time)
    else:
        after = forward(params(), y, LABELS, time.at[:, 2].add(0.2))
    same = np.all(before == after, axis=-1)
    assert np.all(same[:, : 2 * CELL]) and not np.any(same[:, 2 * CELL :])


def test_no_class_is_a_class_of_its_own(key):
    y, time = jax.random.normal(key, (2, CELLS * CELL, CHANNELS)), jnp.full((2, CELLS), 0.5)
    table = params()["class_embedding"]
    other = params() | {"class_embedding": table.at[CLASSES].add(1)}
    labels = jnp.array([1, CLASSES])
    before, after = (forward(p, y, labels, time) for p in (params(), other))
    np.testing.assert_array_equal(before[0], after[0])
    assert np.any(before[1] != after[1])


def test_native_order_is_cell_after_cell():
    """A row of two cells of 2 x 2."""
    wide = make().clone(grid=(2, 4))
    np.testing.assert_array_equal(wide.native_order, [0, 1, 4, 5, 2, 3, 6, 7])


# --- drawing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
def test_one_time_for_an_image_or_one_for_a_cell(key, shared):
    time = make(shared_time=shared).draw(jax.random.split(key, 8)).time
    assert time.shape == (8, CELLS)
    distinct = [len(np.unique(row)) for row in time]
    assert distinct == [1 if shared else CELLS] * 8
    assert len(np.unique(time)) == 8 * distinct[0]


@pytest.mark.parametrize("kind", ["uniform", "logit_normal"])
@pytest.mark.parametrize("shared", [True, False])
def test_distribution_of_times(key, kind, shared):
    module = make(time=kind, shared_time=shared)
    time = np.asarray(jax.jit(module.draw)(jax.random.split(key, 2000)).time, np.float64)[:, 0]
    if kind == "uniform":
        assert stats.kstest(time, "uniform").pvalue > 0.01
    else:
        assert stats.kstest(np.log(time / (1 - time)), "norm").pvalue > 0.01


@pytest.mark.parametrize("shared", [True, False])
def test_noise_is_normal_and_has_nothing_of_the_time(key, shared):
    draws = jax.jit(make(shared_time=shared).draw)(jax.random.split(key, 2000))
    noise = np.asarray(draws.noise, np.float64)
    assert noise.shape == (2000, CELLS * CELL, CHANNELS)
    assert stats.kstest(noise[:, 5].ravel(), "norm").pvalue > 0.01
    correlation = np.corrcoef(draws.time[:, -1], noise.reshape(2000, -1), rowvar=False)[0, 1:]
    assert np.max(abs(correlation)) < 0.1


def test_draws_of_an_example_depend_on_its_key_only(key):
    draw, keys = jax.jit(make().draw), jax.random.split(key, 3)
    together, alone = draw(keys), draw(keys[1:2])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1:2], b), together, alone)


# --- training ------------------------------------------------------------------------------------


@pytest.fixture
def y():
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 16, CHANNELS)), jnp.float32)


@functools.cache
def predictor(**changes):
    module = make(**changes)

    @jax.jit
    def run(params, y, labels, draws, rngs):
        return module.apply({"params": params}, y, labels, draws, rngs=rngs, method=module.predict)

    return functools.partial(run, params())


def test_prediction(key, y):
    """The loss of the flow eps - y at (1 - t) y + t eps, and the sequence that the flow means."""
    draws = make().draw(jax.random.split(key, 2))
    found = predictor()(y, LABELS, draws, {})
    t, noise = np.repeat(draws.time, CELL, axis=1)[..., None], np.asarray(draws.noise)
    flow = forward(params(), (1 - t) * y + t * noise, LABELS, draws.time)
    squares = np.sum((np.asarray(flow) - (noise - np.asarray(y))) ** 2, axis=(1, 2))
    np.testing.assert_allclose(found.loss, squares, rtol=1e-4)
    np.testing.assert_array_equal(found.weight, [16 * CHANNELS] * 2)
    np.testing.assert_allclose(found.clean, (noise - flow)[None], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found.snr, np.ones((1, 2)))
    assert found.variational_loss is None


def test_dropout_acts_with_its_key_alone(key, y):
    draws = make().draw(jax.random.split(key, 2))
    loss = lambda **rngs: predictor(dropout=0.5)(y, LABELS, draws, rngs).loss  # noqa: E731
    np.testing.assert_allclose(loss(), predictor()(y, LABELS, draws, {}).loss, rtol=1e-4)
    one, other = (loss(dropout=k) for k in jax.random.split(key))
    assert np.all(one != other)


def test_attention_dropout_acts_with_its_key_alone(key, y):
    draws = make().draw(jax.random.split(key, 2))
    run = predictor(attention_dropout=0.5)
    loss = lambda **rngs: run(y, LABELS, draws, rngs).loss  # noqa: E731
    np.testing.assert_allclose(loss(), predictor()(y, LABELS, draws, {}).loss, rtol=1e-4)
    one, other = (loss(dropout=k) for k in jax.random.split(key))
    assert np.all(one != other)


def test_a_mesh_changes_nothing(key):
    module = make()
    y = jnp.asarray(np.random.default_rng(2).normal(size=(8, 16, CHANNELS)), jnp.float32)
    labels, draws = jnp.arange(8) % CLASSES, module.draw(jax.random.split(key, 8))
    expected = predictor()(y, labels, draws, {})
    init = functools.partial(module.init, method=module.initialize)
    boxed = jax.eval_shape(init, key, y, labels, jax.random.split(key, 8))["params"]
    mesh = mesh_lib.make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        cut = jax.device_put((y, labels, draws), mesh_lib.batch_sharding(mesh))
        whole = jax.device_put(params(), mesh_lib.shardings(mesh, boxed))
        found = predictor().func(whole, *cut, {})
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected
    )


# --- sampling ------------------------------------------------------------------------------------

SETTINGS = Settings(guided=True, sampler="euler_maruyama", steps=STEPS)


@functools.cache
def drawer(dtype):
    """(params, labels, keys, guidance scale, temperature) -> y."""
    draw = make(dtype=dtype).sample
    return jax.jit(lambda p, *numbers: draw(p, Request(*numbers, settings=SETTINGS)))


def test_an_image_depends_on_its_own_key_alone(key):
    labels, keys = jnp.array([0, 3, 1]), jax.random.split(key, 3)
    draw = drawer(jnp.float32)
    together = draw(params(), labels, keys, SCALE, 1.0)
    alone = draw(params(), labels[1:2], keys[1:2], SCALE, 1.0)
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-4, atol=1e-4)
    swapped = draw(params(), labels, keys[jnp.array([2, 1, 0])], SCALE, 1.0)
    np.testing.assert_allclose(together[1], swapped[1], rtol=1e-4, atol=1e-4)
    changed = np.any(np.asarray(together - swapped)[[0, 2]] > 1e-2, axis=(1, 2))
    assert np.all(changed)


def test_temperature_scales_the_noise(key):
    """Of the start and of the steps: at 0 keys make no difference."""
    draw, labels, keys = drawer(jnp.float32), jnp.array([2, 2, 2]), jax.random.split(key, 3)
    cold = draw(params(), labels, keys, SCALE, 0.0)
    np.testing.assert_array_equal(cold[0], cold[1])
    warm = draw(params(), labels, keys, SCALE, 0.5)
    shape = (CELLS, STEPS, CELL, CHANNELS)
    noise = 0.5 * jnp.stack([jax.random.normal(k, shape) for k in keys[:2]], axis=2)
    expected = sampler(True, "euler_maruyama")(params(), labels[:2], noise[:, 0], noise[:, 1:])
    np.testing.assert_allclose(warm[:2], expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_draws_nearly_the_same(key):
    labels, keys = jnp.array([0, 3, 1]), jax.random.split(key, 3)
    found, exact = (
        drawer(dtype)(params(), labels, keys, SCALE, 1.0) for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert found.dtype == jnp.float32
    assert np.linalg.norm(found - exact) < 0.1 * np.linalg.norm(exact)


def test_a_single_cell_is_written_without_guidance(key):
    """Nothing stands before it: the unconditional branch would be of no use."""
    module = make().clone(cell_size=4)
    request = Request(LABELS, jax.random.split(key), SCALE, settings=SETTINGS)
    run = jax.jit(module.sample)
    without = request.replace(settings=SETTINGS._replace(guided=False))
    found, expected = run(params(), request), run(params(), without)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
