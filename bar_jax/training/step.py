"""The train state and the step: pure functions that `jax.jit` compiles once."""

import zlib
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from bar_jax import mesh as mesh_lib
from bar_jax.losses import Sums

Batch = dict[str, jax.Array]
# (params, piece of a batch, key of each example, dropout key, step) -> sums, among them "loss"
LossFn = Callable[[dict, Batch, jax.Array, jax.Array, jax.Array], Sums]


class TrainState(flax.struct.PyTreeNode):
    """Everything that training changes.

    Attributes:
      step: int32, updates made so far.
      params: float32 parameters.
      ema: moving average of the parameters, or None.
      opt_state: of the Optax transformation.
    """

    step: jax.Array
    params: dict
    ema: dict | None
    opt_state: optax.OptState


def stream_key(seed: int, stream: str) -> jax.Array:
    """The key of a named stream of random numbers; steps and examples are folded in by its user."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))


def init_state(
    init_params: Callable[[jax.Array], dict],
    tx: optax.GradientTransformation,
    keep_ema: bool,
    key: jax.Array,
    mesh: jax.sharding.Mesh,
) -> tuple[Callable[[], TrainState], TrainState]:
    """How to make a fresh state, and what it will look like.

    Args:
      init_params: key -> parameters with logical axis names (the `params` of `module.init`).

    Returns:
      A function that makes the state directly in its layout (no device ever holds all of it), and
      the state's shapes with their shardings.
    """

    def boxed(key):
        params = init_params(key)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            ema=jax.tree.map(jnp.copy, params) if keep_ema else None,
            opt_state=tx.init(params),
        )

    shapes = mesh_lib.shapes(mesh, jax.eval_shape(boxed, key))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    make = jit_once(lambda key: nn.unbox(boxed(key)), out_shardings=shardings)
    return lambda: make(key), shapes


def jit_once(function: Callable, **options) -> Callable:
    """`jax.jit` of what runs once, such as an initialisation with a random draw per parameter.

    On CPU, compiling that well takes longer than anything that it could save.
    """
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    return jax.jit(function, compiler_options=quick, **options)


def ema_decay(updates: jax.Array | int, largest: float) -> jax.Array:
    """Decay of the moving average at the n-th update: 0, then min(largest, (1 + s) / (10 + s)).

    s = updates - 1. The warm-up keeps the random start out of short runs' averages.
    """
    s = jnp.asarray(updates, jnp.float32) - 1
    return jnp.where(s <= 0, 0.0, jnp.minimum(largest, (1 + s) / (10 + s)))


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    *,
    largest_ema_decay: float = 0.0,
    accumulate: int = 1,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """The step `(state, batch, key) -> (state, metrics)`, to be jitted with the state donated.

    The loss of a batch is a quotient of two sums over its examples. With accumulation the pieces'
    sums and gradients are added and divided once, and each example draws from its own key, so the
    pieces give what the whole batch gives.

    Args:
      accumulate: pieces that the batch is cut into.

    Returns:
      A function of the state, a batch of arrays [B, ...] and the key of the stream; the step folds
      its own number in. Its metrics are float32 scalars: every quotient of the loss function's
      sums, `grad_norm` (before clipping), `update_norm`, `param_norm` and `learning_rate`.
    """

    def sums_and_gradient(params, piece, keys, dropout_key, step):
        def objective(params):
            sums = loss_fn(params, piece, keys, dropout_key, step)
            return sums["loss"][0], sums

        gradient, sums = jax.grad(objective, has_aux=True)(params)
        return gradient, sums

    def accumulated(params, batch, keys, dropout_key, step):
        def cut(x):
            # Piece a holds the rows a, a + A, ...: an even share of every device's rows.
            rows = x.shape[0] // accumulate
            return jnp.moveaxis(x.reshape(rows, accumulate, *x.shape[1:]), 1, 0)

        def one(piece):
            return sums_and_gradient(params, *piece, step)

        def add(total, piece):
            return jax.tree.map(jnp.add, total, one(piece)), None

        dropout_keys = jax.random.split(dropout_key, accumulate)
        pieces = (jax.tree.map(cut, batch), cut(keys), dropout_keys)
        shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], pieces))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(add, zeros, pieces)[0]

    def train_step(state, batch, key):
        examples_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
        keys = jax.random.split(examples_key, jax.tree.leaves(batch)[0].shape[0])
        total = sums_and_gradient if accumulate == 1 else accumulated
        gradient, sums = total(state.params, batch, keys, dropout_key, state.step)
        gradient = jax.tree.map(lambda g: g / sums["loss"][1], gradient)

        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            decay = ema_decay(state.step + 1, largest_ema_decay)
            ema = optax.incremental_update(params, ema, 1 - decay)
        metrics = quotients(sums) | {
            "grad_norm": optax.tree.norm(gradient),
            "update_norm": optax.tree.norm(updates),
            "param_norm": optax.tree.norm(params),
            "learning_rate": schedule(state.step),
        }
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    return train_step


def quotients(sums: Sums) -> dict[str, jax.Array]:
    """Each sum divided by its weight."""
    return {name: total / weight for name, (total, weight) in sums.items()}
