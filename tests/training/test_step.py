"""Tests of bar_jax/training/step.py; the step on a mesh is tested in tests/runtime/test_mesh.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import meta

from bar_jax.generators.causal import CausalTransformer
from bar_jax.generators.masked_bit import MaskedBitGenerator
from bar_jax.heads.masked_bit import MaskedBitHead
from bar_jax.training.step import (
    TrainState,
    UpdateRule,
    ema_rate,
    quotients,
    stream_key,
    train_step,
)

LEARNING_RATE = 0.1


def weighted_square(params, batch, keys, frozen):
    """sum w (p - x)^2 and sum w; `noise` is what each example draws."""
    error = params["p"] - batch["x"]
    noise = jax.vmap(jax.random.normal)(keys.examples)
    return {
        "loss": (jnp.sum(batch["w"] * error**2), jnp.sum(batch["w"])),
        "noise": (jnp.sum(noise), jnp.ones(())),
        "step": (keys.step.astype(jnp.float32), jnp.ones(())),
    }


def fresh(tx, params, ema=None, step=0):
    return TrainState(jnp.array(step, jnp.int32), params, ema, tx.init(params))


def jitted(loss_fn, rate=LEARNING_RATE, **options):
    """The step of gradient descent."""
    rule = UpdateRule(optax.sgd(rate), lambda step: rate + 0.0 * step, **options)
    return jax.jit(functools.partial(train_step, loss_fn=loss_fn, rule=rule))


@functools.cache
def toy_step(accumulate=1, ema_decay=0.0):
    return jitted(weighted_square, ema_decay=ema_decay, accumulate=accumulate)


def toy_state(p=1.0, **changes):
    return fresh(optax.sgd(LEARNING_RATE), {"p": jnp.array(p)}, **changes)


BATCH = {"x": jnp.array([0.0, 2.0, 3.0, 5.0]), "w": jnp.array([1.0, 0.5, 2.0, 0.5])}


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_one_step_by_hand(key, accumulate):
    """p = 1: loss (1 + 0.5 + 8 + 8) / 4, gradient 2 (1 - 0.5 - 4 - 2) / 4 = -2.75."""
    state, metrics = toy_step(accumulate)(toy_state(), BATCH, key)
    np.testing.assert_allclose(state.params["p"], 1 + LEARNING_RATE * 2.75, rtol=1e-6)
    expected = {
        "loss": 17.5 / 4,
        "grad_norm": 2.75,
        "update_norm": 0.275,
        "param_norm": 1.275,
        "learning_rate": LEARNING_RATE,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)
    assert state.step == 1 and state.ema is None


@pytest.mark.parametrize("accumulate", [2, 4])
def test_pieces_draw_what_the_whole_batch_draws(key, accumulate):
    _, whole = toy_step()(toy_state(), BATCH, key)
    _, pieces = toy_step(accumulate)(toy_state(), BATCH, key)
    # The weight of a piece's noise is 1.
    np.testing.assert_allclose(accumulate * pieces["noise"], whole["noise"], rtol=1e-5)


def test_pieces_have_dropout_keys_of_their_own(key):
    """The mean of the squares of what they draw is more than the square of the mean."""

    def loss_fn(params, batch, keys, frozen):
        drawn, one = jax.random.uniform(keys.dropout), jnp.ones(())
        return {"loss": (params["p"], one), "drawn": (drawn, one), "square": (drawn**2, one)}

    _, metrics = jitted(loss_fn, accumulate=4)(toy_state(), BATCH, key)
    assert metrics["square"] > 1.01 * metrics["drawn"] ** 2


def test_draws_follow_the_key_and_the_step(key):
    noise = lambda step, key: toy_step()(toy_state(step=step), BATCH, key)[1]["noise"]  # noqa: E731
    assert noise(0, key) == noise(0, key)
    assert noise(0, key) != noise(1, key)
    assert noise(0, key) != noise(0, jax.random.key(1))


def test_the_loss_is_given_the_step(key):
    assert toy_step()(toy_state(step=7), BATCH, key)[1]["step"] == 7


@pytest.mark.parametrize(
    "update, rate", [(1, 1.0), (2, 9 / 11), (3, 9 / 12), (11, 9 / 20), (100_000, 0.001)]
)
def test_ema_rate_falls_to_that_of_the_largest_decay(update, rate):
    """To float32's last digit: of a decay in float32, 1 - 0.999 is off by 1.3e-5."""
    np.testing.assert_allclose(ema_rate(update, 0.999), rate, rtol=1.2e-7)


def test_ema_follows_the_parameters(key):
    """The first update copies them, whatever the average was; then 2/11, then 0.2 at most."""
    step = toy_step(ema_decay=0.2)
    state, params = toy_state(ema={"p": jnp.array(99.0)}), []
    for _ in range(3):
        state, _ = step(state, BATCH, key)
        params.append(float(state.params["p"]))
    expected = params[0]
    for decay, value in zip((2 / 11, 0.2), params[1:], strict=True):
        expected = decay * expected + (1 - decay) * value
    np.testing.assert_allclose(state.ema["p"], expected, rtol=1e-6)


def test_quotients():
    got = quotients({"a": (jnp.array(3.0), jnp.array(2))})
    assert got == {"a": 1.5}


def test_streams_are_independent_and_fixed():
    data = lambda *args: jax.random.key_data(stream_key(*args)).tolist()  # noqa: E731
    assert data(0, "train") == data(0, "train")
    assert len({tuple(data(*args)) for args in [(0, "train"), (1, "train"), (0, "sample")]}) == 3


# The masked-bit loss


@pytest.fixture(scope="module")
def generator():
    trunk = CausalTransformer(
        2, (2, 2), 3, width=8, depth=2, heads=2, output_width=8, class_repeats=1
    )
    return MaskedBitGenerator(trunk, MaskedBitHead(2, 8, 1), (2, 2), label_dropout=0.5)


@pytest.fixture(scope="module")
def updated(generator):
    """Parameters and metrics after a step of gradient descent, by pieces of the batch."""
    rng = np.random.default_rng(0)
    batch = {
        "bits": jnp.asarray(rng.integers(0, 2, (8, 4, 2)), jnp.uint8),
        "labels": jnp.asarray(rng.integers(0, 3, 8)),
    }
    key = jax.random.key(0)
    init = functools.partial(generator.init, method=generator.initialize)
    shapes = jax.eval_shape(init, key, batch["bits"], batch["labels"], jax.random.split(key, 8))
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape) / 2, jnp.float32), meta.unbox(shapes)
    )

    def loss(params, batch, keys, frozen):
        draws = generator.draw(keys.examples)
        args = batch["bits"], batch["labels"], draws, 0.5, False
        return generator.apply(params, *args, method=generator.loss)

    def update(accumulate):
        tx = optax.sgd(1.0)
        rule = UpdateRule(tx, lambda step: 1.0, accumulate=accumulate)
        step = functools.partial(train_step, loss_fn=loss, rule=rule)
        quick = {"xla_backend_optimization_level": 0}  # compiles fast
        step = jax.jit(step, compiler_options=quick)
        state, metrics = step(fresh(tx, params), batch, key)
        return jax.tree.map(jnp.subtract, params, state.params), metrics

    return update


@pytest.mark.slow
def test_pieces_give_the_gradient_of_the_whole_batch(updated):
    """Their weights differ (each hides other bits): averaging the pieces' means would be wrong."""
    (whole, whole_metrics), (pieces, metrics) = updated(1), updated(4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), pieces, whole)
    for name, value in whole_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
