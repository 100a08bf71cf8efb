"""What a stage trains: one network that minimises a loss, or two that play against each other."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from bar_jax.losses import Sums
from bar_jax.training import optimizer
from bar_jax.training.step import (
    Batch,
    LossFn,
    Path,
    Step,
    TrainState,
    average,
    everything,
    fresh_state,
    make_train_step,
)


class Program(NamedTuple):
    """What a stage trains.

    Attributes:
      init: key -> a fresh state, its parameters with logical axis names.
      step: number of a step -> the function that makes it; the same function for the same kind of
        step, so that each is compiled once.
      pretrained: parameters, on the mesh, that replace fresh ones of a state from scratch.
      frozen: arrays, on the mesh, that steps read and nothing changes.
      fixed: parameters, on the mesh, that every fresh start has, from another run's too.
    """

    init: Callable[[jax.Array], TrainState]
    step: Callable[[int], Step]
    pretrained: dict = {}
    frozen: dict = {}
    fixed: dict = {}


# As `training.step.LossFn`, with the frozen networks as its last argument.
FrozenLossFn = Callable[[dict, Batch, jax.Array, jax.Array, jax.Array, dict], Sums]


class Discriminator(flax.struct.PyTreeNode):
    """The second player's part of the train state.

    Attributes:
      params: float32 parameters.
      vectors: u and v of each spectral norm; every training forward makes one power iteration.
      opt_state: of the Optax transformation.
    """

    params: dict
    vectors: dict
    opt_state: optax.OptState


class Opponent(NamedTuple):
    """How the second player is made and trained.

    Attributes:
      init: key -> fresh parameters with logical axis names, and vectors.
      power_iteration: (parameters, vectors) -> vectors after one power iteration.
      loss_fn: what it minimises, of (its parameters, piece of a batch, keys, dropout key, step,
        frozen). `frozen` holds, besides the frozen networks, `generator` (the first player's
        parameters) and `vectors` (a pair: for the real and then for the generated images).
      section: its `optimizer` section.
      start: the step from which on it is trained, on every second step.
      warmup: steps of its warm-up.
    """

    init: Callable[[jax.Array], tuple[dict, dict]]
    power_iteration: Callable[[dict, dict], dict]
    loss_fn: FrozenLossFn
    section: ConfigDict
    start: int
    warmup: int


def one_player(
    init_params: Callable[[jax.Array], dict],
    loss_fn: LossFn,
    section: ConfigDict,
    steps: int,
    warmup: int,
    constant: int = 0,
    *,
    trained: Callable[[Path], bool] = everything,
    last: optax.GradientTransformation | None = None,
    pretrained: dict | None = None,
    fixed: dict | None = None,
) -> Program:
    """A network that minimises a loss.

    Args:
      init_params: key -> parameters with logical axis names.
      loss_fn: see `training.step`.
      section: the stage's: `optimizer`, `ema_decay`, `accumulate`.
      steps, warmup, constant: of the learning rate's schedule, see `optimizer.warmup_cosine`.
      trained, last, pretrained, fixed: see `two_players`.
    """
    without_frozen = lambda *args: loss_fn(*args[:-1])
    return two_players(
        init_params,
        without_frozen,
        section,
        steps,
        warmup,
        constant,
        opponent=None,
        trained=trained,
        last=last,
        pretrained=pretrained,
        fixed=fixed,
    )


def two_players(
    init_params: Callable[[jax.Array], dict],
    loss_fn: FrozenLossFn,
    section: ConfigDict,
    steps: int,
    warmup: int,
    constant: int = 0,
    *,
    opponent: Opponent | None,
    trained: Callable[[Path], bool] = everything,
    share: Callable[[Path], float] | None = None,
    last: optax.GradientTransformation | None = None,
    pretrained: dict | None = None,
    frozen: dict | None = None,
    fixed: dict | None = None,
) -> Program:
    """A network that minimises a loss, and from a step on an opponent that is part of the loss.

    From the opponent's start on the two take turns, each on a new batch, the network first. The
    state's step counts both kinds; each player's learning rate follows a schedule of its own, which
    goes on when that player moves: the network's over all `steps`, the opponent's over those from
    its start on, although it makes but half of them. The moving average is updated after both kinds
    of step.

    Args:
      init_params, section, steps, warmup, constant: as for `one_player`.
      loss_fn: when the opponent plays, `frozen` holds a pair `discriminator`: its parameters, and
        the vectors after the power iteration of this step.
      opponent: None if there is none.
      trained: which parameters of the network change.
      share: path of a parameter -> what its learning rate is of the schedule's; None: all of it.
      last: of the optimiser's chain, see `optimizer.adamw`.
      pretrained, frozen, fixed: see `Program`.
    """
    rates = warmup, steps, share, constant
    tx, schedule = optimizer.from_section(section.optimizer, *rates, last)
    start = opponent.start if opponent else steps
    options = {
        "accumulate": section.accumulate,
        "largest_ema_decay": section.ema_decay,
        "trained": trained,
    }
    own_rate = lambda step: schedule(moves(step, start))

    def plain_step(state: TrainState, batch: Batch, key: jax.Array, frozen: dict):
        loss = functools.partial(_with_frozen, loss_fn, frozen)
        return make_train_step(loss, tx, own_rate, **options)(state, batch, key)

    if opponent is None:
        init = lambda key: fresh_state(init_params(key), tx, section.ema_decay > 0, trained)
        return Program(init, lambda step: plain_step, pretrained or {}, frozen or {}, fixed or {})

    other_tx, other_schedule = optimizer.from_section(
        opponent.section, opponent.warmup, steps - start
    )
    other_rate = lambda step: other_schedule((step - start) // 2)

    def init(key):
        state = fresh_state(init_params(key), tx, section.ema_decay > 0, trained)
        params, vectors = opponent.init(jax.random.fold_in(key, 1))
        return state.replace(discriminator=Discriminator(params, vectors, other_tx.init(params)))

    def step_against(state: TrainState, batch: Batch, key: jax.Array, frozen: dict):
        other = state.discriminator
        vectors = opponent.power_iteration(other.params, other.vectors)
        loss = functools.partial(
            _with_frozen, loss_fn, frozen | {"discriminator": (other.params, vectors)}
        )
        state, metrics = make_train_step(loss, tx, own_rate, **options)(state, batch, key)
        return state.replace(discriminator=other.replace(vectors=vectors)), metrics

    def opponents_step(state: TrainState, batch: Batch, key: jax.Array, frozen: dict):
        other = state.discriminator
        real = opponent.power_iteration(other.params, other.vectors)
        generated = opponent.power_iteration(other.params, real)
        given = frozen | {"generator": state.params, "vectors": (real, generated)}
        loss = functools.partial(_with_frozen, opponent.loss_fn, given)
        own = TrainState(state.step, other.params, None, other.opt_state)
        step = make_train_step(loss, other_tx, other_rate, accumulate=section.accumulate)
        own, metrics = step(own, batch, key)
        other = Discriminator(own.params, generated, own.opt_state)
        ema = average(state.ema, state.params, state.step, section.ema_decay, trained)
        state = state.replace(step=state.step + 1, ema=ema, discriminator=other)
        return state, {f"discriminator_{name}": value for name, value in metrics.items()}

    def step(number: int) -> Step:
        if number < start:
            return plain_step
        return step_against if (number - start) % 2 == 0 else opponents_step

    return Program(init, step, pretrained or {}, frozen or {}, fixed or {})


def moves(step: jax.Array | int, start: int) -> jax.Array:
    """How many moves the network has made before a step: all up to `start`, then every second."""
    after = jnp.maximum(jnp.asarray(step) - start, 0)
    return jnp.minimum(step, start) + (after + 1) // 2


def _with_frozen(loss_fn, frozen, params, batch, keys, dropout_key, step):
    return loss_fn(params, batch, keys, dropout_key, step, frozen)
