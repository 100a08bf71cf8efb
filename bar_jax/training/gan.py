"""A network that minimises a loss and, from a step on, a discriminator that is part of the loss.

From the discriminator's start on the two take turns, each on a new batch, the network first
(`gan_step`, then `discriminator_step`). The state's step counts both kinds; each learning rate
follows a schedule of its own, which goes on with its own updates: the network's over all steps, the
discriminator's over those from its start on, although it makes but half of them. The moving average
is updated after both kinds of step.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from bar_jax.losses import Sums
from bar_jax.training.step import (
    Batch,
    Keys,
    Metrics,
    Program,
    Step,
    TrainState,
    UpdateRule,
    average,
    fresh_state,
    train_step,
)


class Discriminator(flax.struct.PyTreeNode):
    """The discriminator's part of the train state.

    Attributes:
      params: float32 parameters.
      vectors: u and v of each spectral norm; every training forward makes one power iteration.
      opt_state: of the Optax transformation.
    """

    params: dict
    vectors: dict
    opt_state: optax.OptState


class Adversary(NamedTuple):
    """The discriminator as the network's loss sees it: parameters, and vectors of this step."""

    params: dict
    vectors: dict


class Vectors(NamedTuple):
    """The vectors of a discriminator's step: for real images, and then for generated ones."""

    real: dict
    generated: dict


# The network's: (params, piece of a batch, keys, frozen networks, adversary or None) -> sums
NetworkLoss = Callable[[dict, Batch, Keys, object, Adversary | None], Sums]
# Its own: (params, piece of a batch, keys, frozen networks, the network's params, vectors) -> sums
DiscriminatorLoss = Callable[[dict, Batch, Keys, object, dict, Vectors], Sums]


class Gan(NamedTuple):
    """How a discriminator is made and trained.

    Attributes:
      init: key -> fresh parameters with logical axis names, and vectors.
      power_iteration: (parameters, vectors) -> vectors after one power iteration.
      loss_fn: what it minimises.
      rule: how it is updated; the learning rate is one of its own updates.
      start: the step from which on it is trained, on every second step.
    """

    init: Callable[[jax.Array], tuple[dict, dict]]
    power_iteration: Callable[[dict, dict], dict]
    loss_fn: DiscriminatorLoss
    rule: UpdateRule
    start: int


def make_program(
    init_params: Callable[[jax.Array], dict],
    loss_fn: NetworkLoss,
    rule: UpdateRule,
    gan: Gan,
    frozen: object,
) -> Program:
    """The game of a network and a discriminator.

    Args:
      init_params: key -> the network's parameters with logical axis names.
      loss_fn, rule: the network's.
      frozen: see `Program`.
    """
    schedule = rule.learning_rate
    rule = rule._replace(learning_rate=lambda step: schedule(updates(step, gan.start)))
    network = {"loss_fn": loss_fn, "rule": rule}
    alone = functools.partial(train_step, **network)
    against = functools.partial(gan_step, **network, gan=gan)
    discriminators = functools.partial(discriminator_step, network_rule=rule, gan=gan)

    def init(key: jax.Array) -> TrainState:
        state = fresh_state(init_params(key), rule.tx, rule.ema_decay > 0, rule.trained)
        params, vectors = gan.init(jax.random.fold_in(key, 1))
        opt_state = gan.rule.tx.init(params)
        return state.replace(discriminator=Discriminator(params, vectors, opt_state))

    def step(number: int) -> Step:
        if number < gan.start:
            return alone
        return against if (number - gan.start) % 2 == 0 else discriminators

    return Program(init, step, frozen=frozen)


def gan_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    frozen: object,
    *,
    loss_fn: NetworkLoss,
    rule: UpdateRule,
    gan: Gan,
) -> tuple[TrainState, Metrics]:
    """One update of the network against the discriminator, of which the vectors alone change."""
    other = state.discriminator
    vectors = gan.power_iteration(other.params, other.vectors)
    loss_fn = functools.partial(loss_fn, adversary=Adversary(other.params, vectors))
    state, metrics = train_step(state, batch, key, frozen, loss_fn=loss_fn, rule=rule)
    return state.replace(discriminator=other.replace(vectors=vectors)), metrics


def discriminator_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    frozen: object,
    *,
    network_rule: UpdateRule,
    gan: Gan,
) -> tuple[TrainState, Metrics]:
    """One update of the discriminator; the network's moving average alone goes on."""
    other = state.discriminator
    real = gan.power_iteration(other.params, other.vectors)
    vectors = Vectors(real, gan.power_iteration(other.params, real))
    loss_fn = functools.partial(gan.loss_fn, network=state.params, vectors=vectors)
    rule = gan.rule._replace(
        learning_rate=lambda step: gan.rule.learning_rate((step - gan.start) // 2)
    )
    own = TrainState(state.step, other.params, None, other.opt_state)
    own, metrics = train_step(own, batch, key, frozen, loss_fn=loss_fn, rule=rule)
    state = state.replace(
        step=state.step + 1,
        ema=average(state.ema, state.params, state.step, network_rule),
        discriminator=Discriminator(own.params, vectors.generated, own.opt_state),
    )
    return state, {f"discriminator_{name}": value for name, value in metrics.items()}


def updates(step: jax.Array | int, start: int) -> jax.Array:
    """Updates that the network has made before a step: all up to `start`, then every second."""
    after = jnp.maximum(jnp.asarray(step) - start, 0)
    return jnp.minimum(step, start) + (after + 1) // 2
