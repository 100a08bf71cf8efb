"""The training loop: evaluate, save, draw a batch, step.

Saving comes before the batch is drawn, and data and random numbers are functions of the step, so
a run that goes on from a checkpoint does what it would have done.
"""

import contextlib
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from tqdm import tqdm

from bar_jax import mesh as mesh_lib
from bar_jax.config import duration
from bar_jax.training import checkpoint, optimizer, preemption
from bar_jax.training.step import LossFn, TrainState, init_state, make_train_step, stream_key
from bar_jax.training.writer import MetricsWriter

logger = logging.getLogger(__name__)

Results = dict[str, float]


class NonFinite(RuntimeError):
    """A loss or gradient is no longer finite; the message says between which steps."""


def train(
    stage: str,
    section: ConfigDict,
    *,
    seed: int,
    examples: int,
    mesh: jax.sharding.Mesh,
    init_params: Callable[[jax.Array], dict],
    loss_fn: LossFn,
    batches: Callable[[int], Iterator[dict]],
    evaluate: Callable[[TrainState, MetricsWriter], Results],
    folder: str | os.PathLike,
    init_from: str | os.PathLike | None,
    config: dict,
) -> tuple[int, Results]:
    """Trains one stage to its end, going on from its last checkpoint if there is one.

    Args:
      stage: name of the stage and of its section in the config.
      section: that section: batch size, duration, optimiser, intervals.
      examples: images of an epoch.
      init_params: key -> parameters with logical axis names.
      loss_fn: see `training.step`.
      batches: the step to start at -> endless host batches, this process's rows.
      evaluate: final numbers of a state; called every `evaluate_every` steps and at the end.
      folder: of the checkpoints; logs go into its parent.
      init_from: folder of other checkpoints whose parameters to start from, or None.
      config: the run's fields, saved with each checkpoint.

    Returns:
      The steps of the stage, and the last evaluation with `seconds` of all runs together.

    Raises:
      InputError: a checkpoint that does not fit.
      NonFinite: a logged loss or gradient norm is not finite; nothing is saved after that.
      Preempted: SIGTERM came; the state is saved.
    """
    size = section.batch_size
    steps = duration(section, f"{stage}.", size, examples)
    warmup = duration(section.optimizer, f"{stage}.optimizer.warmup_", size, examples, False)
    with (
        contextlib.closing(checkpoint.open_manager(folder, section.keep_checkpoints)) as manager,
        jax.set_mesh(mesh),
    ):
        if manager.latest_step() == steps:
            logger.info("%s: finished at step %d, nothing to do", stage, steps)
            return steps, checkpoint.read_meta(folder)["results"]

        tx, schedule = optimizer.from_section(section.optimizer, warmup, steps)
        make_state, shapes = init_state(
            init_params, tx, section.ema_decay > 0, stream_key(seed, f"{stage}/params"), mesh
        )
        state, results = _start(manager, make_state, shapes, init_from, stage)
        step_fn = make_train_step(
            loss_fn,
            tx,
            schedule,
            largest_ema_decay=section.ema_decay,
            accumulate=section.accumulate,
        )
        layout = jax.tree.map(lambda leaf: leaf.sharding, shapes)
        step_fn = jax.jit(
            step_fn,
            donate_argnums=0,
            in_shardings=(layout, mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)),
            out_shardings=(layout, mesh_lib.replicated(mesh)),
        )
        start = int(state.step)
        writer = MetricsWriter(pathlib.Path(folder).parent, stage, start)
        with contextlib.closing(batches(start)) as data, contextlib.closing(writer):
            results = _loop(
                stage, section, state, steps, results, step_fn, stream_key(seed, stage), data,
                mesh, evaluate, manager, config, writer,
            )  # fmt: skip
    return steps, results


def _start(
    manager: ocp.CheckpointManager,
    make_state: Callable[[], TrainState],
    shapes: TrainState,
    init_from: str | os.PathLike | None,
    stage: str,
) -> tuple[TrainState, Results]:
    """The three ways to start: own checkpoint, else `init_from`, else from scratch."""
    if manager.latest_step() is not None:
        state, results = checkpoint.restore_state(manager, shapes)
        logger.info("%s: goes on at step %d", stage, int(state.step))
        return state, results
    state = make_state()
    if init_from:
        params, step = checkpoint.restore_params(init_from, shapes.params)
        logger.info("%s: starts from %s, step %d", stage, init_from, step)
        ema = None if state.ema is None else jax.tree.map(lambda x: x.copy(), params)
        state = state.replace(params=params, ema=ema)
    return state, {}


def _loop(
    stage, section, state, steps, results, step_fn, key, batches, mesh, evaluate, manager, config,
    writer,
) -> Results:  # fmt: skip
    start, earlier = int(state.step), results.get("seconds", 0.0)
    began = time.monotonic()
    metrics, finite_at, logged_at, logged_time = None, start, start, None
    stop_asked = preemption.watch(manager)
    bar = tqdm(total=steps, initial=start, desc=stage, unit="step", disable=not sys.stderr.isatty())

    for step in range(start, steps + 1):
        last, moved = step == steps, step > start
        stop = not last and stop_asked(step)
        evaluate_now = moved and (last or step % section.evaluate_every == 0)
        save_now = moved and (last or stop or step % section.save_every == 0)
        log_now = moved and (evaluate_now or save_now or step % section.log_every == 0)

        if log_now:
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            _check_finite(values, stage, finite_at, step, manager.latest_step())
            finite_at, now = step, time.monotonic()
            if logged_time is not None:  # the first stretch holds the compilation
                rate = (step - logged_at) / (now - logged_time)
                values |= {"steps_per_second": rate, "images_per_second": rate * section.batch_size}
            writer.scalars(step, values)
            _report(stage, step, steps, values)
            logged_at, logged_time = step, now
        if evaluate_now:
            results = dict(evaluate(state, writer))
            writer.scalars(step, results)
            found = ", ".join(f"{name} {value:.4g}" for name, value in results.items())
            logger.info("%s step %d: %s", stage, step, found)
            logged_time = time.monotonic()
        if save_now:
            results["seconds"] = earlier + time.monotonic() - began
            checkpoint.save(manager, state, config, results)
        if stop:
            manager.wait_until_finished()
            raise preemption.Preempted(f"{stage}: saved at step {step}")
        if last:
            break

        state, metrics = step_fn(state, mesh_lib.put_batch(mesh, next(batches)), key)
        bar.update()

    bar.close()
    manager.wait_until_finished()
    return results


def _check_finite(
    values: Results, stage: str, finite_at: int, step: int, saved: int | None
) -> None:
    for name in ("loss", "grad_norm"):
        if not math.isfinite(values[name]):
            kept = "no checkpoint was saved" if saved is None else f"the last save is step {saved}"
            when = f"between steps {finite_at} and {step}"
            raise NonFinite(f"{stage}: {name} became {values[name]} {when}; {kept}")


def _report(stage: str, step: int, steps: int, values: Results) -> None:
    rate = values.get("steps_per_second")
    eta = f", {rate:.1f} steps/s, {format_seconds((steps - step) / rate)} left" if rate else ""
    logger.info("%s step %d/%d: loss %.4f%s", stage, step, steps, values["loss"], eta)


def format_seconds(seconds: float) -> str:
    """12345.6 -> '3:25:46'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
