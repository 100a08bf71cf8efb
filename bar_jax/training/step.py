"""The train state and the step: pure functions that `jax.jit` compiles once."""

import functools
import zlib
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from bar_jax.losses import Sums
from bar_jax.runtime import mesh as mesh_lib

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Path = tuple  # of a parameter, as `jax.tree_util` has it


class Keys(NamedTuple):
    """What the random draws of a piece of a batch follow from.

    Attributes:
      examples: [B] a key of each example.
      dropout: the piece's key.
      step: int32 [], updates made before.
    """

    examples: jax.Array
    dropout: jax.Array
    step: jax.Array


# (params, piece of a batch, keys, frozen networks) -> sums, among them "loss"
LossFn = Callable[[dict, Batch, Keys, object], Sums]


class TrainState(flax.struct.PyTreeNode):
    """Everything that training changes.

    Attributes:
      step: int32, updates made so far.
      params: float32 parameters.
      ema: moving average of the parameters, or None.
      opt_state: of the Optax transformation.
      discriminator: a `training.gan.Discriminator`, or None.
    """

    step: jax.Array
    params: dict
    ema: dict | None
    opt_state: optax.OptState
    discriminator: object = None


# (state, batch, key of the stream, frozen networks) -> (state, metrics)
Step = Callable[[TrainState, Batch, jax.Array, object], tuple[TrainState, Metrics]]


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
    frozen: object = ()
    fixed: dict = {}


def everything(path: Path) -> bool:
    """Whether a parameter is trained: each one is."""
    del path
    return True


class UpdateRule(NamedTuple):
    """How parameters follow the gradient of a loss.

    Attributes:
      tx: the Optax transformation.
      learning_rate: step -> that of its schedule, which is logged.
      ema_decay: largest decay of the moving average; 0: there is none.
      accumulate: pieces that the batch is cut into.
      trained: path of a parameter -> whether it changes; of the others there is no gradient.
    """

    tx: optax.GradientTransformation
    learning_rate: Callable[[jax.Array], jax.Array]
    ema_decay: float = 0.0
    accumulate: int = 1
    trained: Callable[[Path], bool] = everything


def stream_key(seed: int, stream: str) -> jax.Array:
    """The key of a named stream of random numbers; steps and examples are folded in by its user."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))


def fresh_state(
    params: dict,
    tx: optax.GradientTransformation,
    keep_ema: bool,
    trained: Callable[[Path], bool] = everything,
) -> TrainState:
    """The state at step 0; the optimiser keeps nothing of parameters that are not trained."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params) if keep_ema else None,
        opt_state=tx.init(_split(params, trained)[0]),
    )


def make_program(
    init_params: Callable[[jax.Array], dict],
    loss_fn: LossFn,
    rule: UpdateRule,
    frozen: object = (),
) -> Program:
    """A network that minimises a loss.

    Args:
      init_params: key -> parameters with logical axis names.
      frozen: see `Program`.
    """
    step = functools.partial(train_step, loss_fn=loss_fn, rule=rule)
    keep_ema = rule.ema_decay > 0
    init = lambda key: fresh_state(init_params(key), rule.tx, keep_ema, rule.trained)
    return Program(init, lambda number: step, frozen=frozen)


def init_state(
    init: Callable[[jax.Array], TrainState], key: jax.Array, mesh: jax.sharding.Mesh
) -> tuple[Callable[[], TrainState], TrainState]:
    """How to make a fresh state, and what it will look like.

    Args:
      init: key -> a state whose parameters have logical axis names.

    Returns:
      A function that makes the state directly in its layout (no device ever holds all of it), and
      the state's shapes with their shardings.
    """
    shapes = mesh_lib.shapes(mesh, jax.eval_shape(init, key))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    make = jit_once(lambda key: nn.unbox(init(key)), out_shardings=shardings)
    return lambda: make(key), shapes


def _split(params: dict, trained: Callable[[Path], bool]) -> tuple[dict, dict]:
    """Parameters that are trained, and the others, with None in the places of the rest.

    None is an empty tree: gradients and optimisers do not see it.
    """
    is_leaf = lambda x: isinstance(x, nn.meta.AxisMetadata)

    def part(wanted):
        take = lambda path, x: x if trained(path) == wanted else None
        return jax.tree_util.tree_map_with_path(take, params, is_leaf=is_leaf)

    return part(True), part(False)


def _merge(left: dict, right: dict) -> dict:
    """The inverse of `_split`."""
    take = lambda a, b: b if a is None else a
    return jax.tree.map(take, left, right, is_leaf=lambda x: x is None)


def jit_once(function: Callable, **options) -> Callable:
    """`jax.jit` of what runs once, such as an initialisation with a random draw per parameter.

    On CPU, compiling that well takes longer than anything that it could save.
    """
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    return jax.jit(function, compiler_options=quick, **options)


def ema_rate(updates: jax.Array | int, largest_decay: float) -> jax.Array:
    """How far the moving average goes at the n-th update: 1, then max(1 - largest, 9 / (10 + s)).

    s = updates - 1. The decay is 1 - rate, 0 and then min(largest, (1 + s) / (10 + s)); but 1 less
    float32's 0.999 is 0.00099998713. The warm-up keeps the random start out of short averages.
    """
    s = jnp.asarray(updates, jnp.float32) - 1
    return jnp.where(s <= 0, 1.0, jnp.maximum(1 - largest_decay, 9 / (10 + s)))


def moved(shadow: jax.Array, value: jax.Array, rate: jax.Array | float) -> jax.Array:
    """A moving average after one update, s - r (s - x): operations in the published order."""
    return shadow - rate * (shadow - value)


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    frozen: object = (),
    *,
    loss_fn: LossFn,
    rule: UpdateRule,
) -> tuple[TrainState, Metrics]:
    """One update of the parameters; to be jitted with the state donated.

    The loss of a batch is a quotient of two sums over its examples. With accumulation the pieces'
    sums and gradients are added and divided once, and each example draws from its own key, so the
    pieces give what the whole batch gives.

    Args:
      batch: arrays [B, ...].
      key: of the stream; the step folds its own number in.
      frozen: networks that the loss reads and nothing changes.

    Returns:
      The state, and float32 scalars: every quotient of the loss function's sums, `grad_norm`
      (before clipping), `update_norm`, `param_norm` and `learning_rate`.
    """
    examples_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
    examples = jax.random.split(examples_key, jax.tree.leaves(batch)[0].shape[0])
    keys = Keys(examples, dropout_key, state.step)
    free, fixed = _split(state.params, rule.trained)

    def objective(free, batch, keys):
        sums = loss_fn(_merge(free, fixed), batch, keys, frozen)
        return sums["loss"][0], sums

    gradient_of = functools.partial(jax.grad(objective, has_aux=True), free)
    if rule.accumulate == 1:
        gradient, sums = gradient_of(batch, keys)
    else:
        gradient, sums = _accumulated(gradient_of, batch, keys, rule.accumulate)
    gradient = jax.tree.map(lambda g: g / sums["loss"][1], gradient)

    updates, opt_state = rule.tx.update(gradient, state.opt_state, free)
    params = _merge(optax.apply_updates(free, updates), fixed)
    metrics = quotients(sums) | {
        "grad_norm": optax.tree.norm(gradient),
        "update_norm": optax.tree.norm(updates),
        "param_norm": optax.tree.norm(params),
        "learning_rate": rule.learning_rate(state.step),
    }
    ema = average(state.ema, params, state.step, rule)
    state = state.replace(step=state.step + 1, params=params, ema=ema, opt_state=opt_state)
    return state, metrics


def _accumulated(
    gradient_of: Callable[[Batch, Keys], tuple[dict, Sums]], batch: Batch, keys: Keys, pieces: int
) -> tuple[dict, Sums]:
    """The gradient and the sums of a batch's pieces, added one after another."""
    mesh = jax.sharding.get_abstract_mesh()
    ways = 1 if mesh.empty else mesh_lib.batch_ways(mesh)

    def cut(x):
        # Piece a holds the a-th of A blocks of every device's rows: nothing moves between devices,
        # and examples that are normalised together (`losses.discriminator`) stay so.
        rows, rest = x.shape[0] // (ways * pieces), x.shape[1:]
        blocks = x.reshape(ways, pieces, rows, *rest)
        return jnp.moveaxis(blocks, 1, 0).reshape(pieces, ways * rows, *rest)

    def one(piece):
        batch, examples, dropout = piece
        return gradient_of(batch, Keys(examples, dropout, keys.step))

    def add(total, piece):
        return jax.tree.map(jnp.add, total, one(piece)), None

    cuts = jax.tree.map(cut, batch), cut(keys.examples), jax.random.split(keys.dropout, pieces)
    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], cuts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, cuts)[0]


def average(ema: dict | None, params: dict, step: jax.Array, rule: UpdateRule) -> dict | None:
    """The moving average after the update that follows `step` others; None if there is none."""
    if ema is None:
        return None
    moving, fixed = _split(ema, rule.trained)
    rate = ema_rate(step + 1, rule.ema_decay)
    new = jax.tree.map(lambda s, x: moved(s, x, rate), moving, _split(params, rule.trained)[0])
    return _merge(new, fixed)


def quotients(sums: Sums) -> dict[str, jax.Array]:
    """Each sum divided by its weight."""
    return {name: total / weight for name, (total, weight) in sums.items()}
