"""Tests of bar_jax/training/gan.py, against the game played by hand in float64.

The network has two numbers, `slow` (a tenth of the learning rate) and `fast`, and `fixed`, which
is not trained. Its loss is mean (slow + fast + fixed - x)^2, and in the game + mean d v (slow +
fast); the discriminator's is mean (d (slow + fast) - x v)^2. v counts power iterations.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.config import default_config
from bar_jax.training import gan
from bar_jax.training.optimizer import Durations, from_section, scaled
from bar_jax.training.step import UpdateRule, make_program

STEPS, START, WARMUP, OTHER_WARMUP = 12, 5, 2, 1
PEAK, END, CLIP, B1, B2, EMA = 0.1, 0.01, 2.0, 0.9, 0.999, 0.8
FROZEN = {"offset": jnp.array(0.5)}


@pytest.fixture
def section():
    section = default_config().train_tokenizer
    section.update(dict(ema_decay=EMA, accumulate=1))
    for optimizer in (section.optimizer, section.discriminator.optimizer):
        optimizer.update(dict(learning_rate=PEAK, end_learning_rate=END, clip_norm=CLIP))
        optimizer.update(dict(b1=B1, b2=B2, weight_decay=0.0))
    return section


def init_params(key):
    return {"slow": jnp.array(0.3), "fast": jnp.array(-0.2), "fixed": jnp.array(0.7)}


def network_loss(params, batch, keys, frozen, adversary=None):
    made = params["slow"] + params["fast"]
    error = made + params["fixed"] + frozen["offset"] - batch["x"]
    total = jnp.sum(error**2)
    if adversary is not None:
        total += batch["x"].size * adversary.params["d"] * adversary.vectors["v"] * made
    return {"loss": (total, jnp.float32(batch["x"].size))}


def discriminators_loss(params, batch, keys, frozen, network, vectors):
    made = network["slow"] + network["fast"]
    error = params["d"] * made * vectors.generated["v"] - batch["x"] * vectors.real["v"]
    return {"loss": (jnp.sum(error**2), jnp.float32(batch["x"].size))}


def program(section, with_discriminator=True):
    share = lambda path: 0.1 if path[0].key == "slow" else 1.0
    durations = Durations(STEPS, WARMUP)
    rate = from_section(section.optimizer, durations, scaled(share))
    trained = lambda path: path[0].key != "fixed"
    rule = UpdateRule(*rate, section.ema_decay, section.accumulate, trained)
    if not with_discriminator:
        return make_program(init_params, network_loss, rule, FROZEN)
    durations = Durations(STEPS - START, OTHER_WARMUP)
    rate = from_section(section.discriminator.optimizer, durations)
    discriminator = gan.Gan(
        init=lambda key: ({"d": jnp.array(0.4)}, {"v": jnp.array(0.1)}),
        power_iteration=lambda params, vectors: {"v": vectors["v"] + 0.1},
        loss_fn=discriminators_loss,
        rule=UpdateRule(*rate, accumulate=section.accumulate),
        start=START,
    )
    return gan.make_program(init_params, network_loss, rule, discriminator, FROZEN)


def batches():
    return [{"x": np.random.default_rng(i).normal(size=4).astype("f4")} for i in range(STEPS)]


def played(program):
    """The states after each step, and what each step logged."""
    state, states, logged = program.init(jax.random.key(0)), [], []
    jitted = functools.cache(jax.jit)
    for i, batch in enumerate(batches()):
        state, metrics = jitted(program.step(i))(state, batch, jax.random.key(1), program.frozen)
        states.append(jax.device_get(state))
        logged.append(jax.device_get(metrics))
    return states, logged


class Adam:
    """Clipping, Adam and a warm-up followed by a cosine, for a vector."""

    def __init__(self, warmup, total):
        self.count, self.m, self.v, self.warmup, self.total = 0, 0.0, 0.0, warmup, total

    def rate(self):
        progress = (self.count - self.warmup) / (self.total - self.warmup)
        if progress < 0:
            return PEAK * self.count / self.warmup
        return END + (PEAK - END) * (1 + math.cos(math.pi * progress)) / 2

    def update(self, gradient):
        gradient = gradient * min(1, CLIP / np.linalg.norm(gradient))
        rate = self.rate()
        self.count += 1
        self.m = B1 * self.m + (1 - B1) * gradient
        self.v = B2 * self.v + (1 - B2) * gradient**2
        m, v = self.m / (1 - B1**self.count), self.v / (1 - B2**self.count)
        return -rate * m / (np.sqrt(v) + 1e-8)


def by_hand():
    """(slow, fast), d, v, moving average of (slow, fast), and both learning rates, per step."""
    w, d, v, ema = np.array([0.3, -0.2]), np.array([0.4]), 0.1, np.array([0.3, -0.2])
    own, other = Adam(WARMUP, STEPS), Adam(OTHER_WARMUP, STEPS - START)
    rows = []
    for step, batch in enumerate(batches()):
        x, rates = batch["x"].astype(np.float64), (own.rate(), other.rate())
        turn = (step - START) % 2 if step >= START else None
        if turn == 1:
            v += 0.1
            real, v = v, v + 0.1
            made = w.sum()
            gradient = np.mean(2 * made * v * (d * made * v - x * real), keepdims=True)
            d = d + other.update(gradient)
        else:
            gradient = np.mean(2 * (w.sum() + 0.7 + 0.5 - x))
            if turn == 0:
                v += 0.1
                gradient += d[0] * v
            w = w + np.array([0.1, 1.0]) * own.update(np.array([gradient, gradient]))
        decay = min(EMA, (1 + step) / (10 + step)) if step else 0.0
        ema = decay * ema + (1 - decay) * w
        rows.append((w, d[0], v, ema, rates, turn))
    return rows


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_game_is_played_as_by_hand(section, accumulate):
    section.accumulate = accumulate
    states, logged = played(program(section))
    for step, (w, d, v, ema, rates, turn) in enumerate(by_hand()):
        state = states[step]
        found = {
            "network": [state.params["slow"], state.params["fast"]],
            "discriminator": state.discriminator.params["d"],
            "vectors": state.discriminator.vectors["v"],
            "average": [state.ema["slow"], state.ema["fast"]],
            "rate": logged[step]["discriminator_learning_rate" if turn else "learning_rate"],
        }
        expected = {
            "network": w, "discriminator": d, "vectors": v, "average": ema,
            "rate": rates[1 if turn else 0],
        }  # fmt: skip
        for name, value in expected.items():
            message = f"{name} after step {step}"
            np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=1e-6, err_msg=message)
        assert state.step == step + 1


def test_what_is_not_trained_stays_and_has_no_moments(section):
    states, _ = played(program(section))
    assert states[-1].params["fixed"] == states[-1].ema["fixed"] == np.float32(0.7)
    moments = [leaf for leaf in jax.tree.leaves(states[-1].opt_state) if leaf.dtype == np.float32]
    assert len(moments) == 4  # two each of slow and fast


def test_without_a_discriminator_the_network_is_trained_alone(section):
    """Up to the discriminator's start both are the same, and no second state is kept."""
    alone, _ = played(program(section, with_discriminator=False))
    game, _ = played(program(section))
    assert alone[-1].discriminator is None
    assert alone[START - 1].params == game[START - 1].params
    assert alone[START].params != game[START].params


def test_each_kind_of_step_is_one_function(section):
    """So that each is compiled once."""
    kinds = [program(section).step(i) for i in range(2)]
    assert kinds[0] is not kinds[1]  # of two programs
    one = program(section)
    assert len({one.step(i) for i in range(STEPS)}) == 3
    assert len({one.step(i) for i in range(START)}) == 1


def test_updates_of_the_network():
    """Five alone, then every second, its own first."""
    expected = [0, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 8]
    assert [int(gan.updates(step, START)) for step in range(STEPS)] == expected
