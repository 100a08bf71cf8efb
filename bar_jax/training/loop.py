"""The training loop: evaluate, save, draw a batch, step.

Steps are dispatched ahead of the devices, so that these do not wait for the host; but two of them
at most, so that a signal to stop is answered soon, and what is shown is done.

Saving comes before the batch is drawn, and data and random numbers are functions of the step, so
a run that goes on from a checkpoint does what it would have done.
"""

import contextlib
import functools
import logging
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from bar_jax.config import duration, profiled_steps
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime import preemption
from bar_jax.runtime.errors import InputError, NonFinite
from bar_jax.runtime.progress import AHEAD, Steps, format_seconds, losses, never_silent
from bar_jax.runtime.writer import MetricsWriter
from bar_jax.training import checkpoint, optimizer
from bar_jax.training.players import Program
from bar_jax.training.save_clock import SaveClock
from bar_jax.training.step import TrainState, init_state, stream_key
from bar_jax.training.watch import Profiler, Watch
from bar_jax.visualize.report import write_report

logger = logging.getLogger(__name__)

Results = dict[str, float]


def train(
    stage: str,
    section: ConfigDict,
    *,
    seed: int,
    examples: int,
    mesh: jax.sharding.Mesh,
    make_program: Callable[..., Program],
    batches: Callable[[int], Iterator[dict]],
    evaluate: Callable[[TrainState, MetricsWriter], Results],
    folder: str | os.PathLike,
    init_from: str | os.PathLike | None,
    config: dict,
    advice: str,
) -> tuple[int, Results]:
    """Trains one stage to its end, going on from its last checkpoint if there is one.

    Args:
      stage: name of the stage and of its section in the config.
      section: that section: batch size, duration, optimiser, intervals.
      examples: images of an epoch.
      make_program: (steps, steps of warm-up, step up to which the learning rate is constant or 0)
        -> what to train; not called if nothing is left to do.
      batches: the step to start at -> endless host batches, this process's rows.
      evaluate: final numbers of a state; called every `evaluate_every` steps and at the end.
      folder: of the checkpoints; logs go into its parent.
      init_from: folder of other checkpoints whose parameters to start from, or None.
      config: the run's fields, saved with each checkpoint; `profile` of it names steps to trace.
      advice: what makes input faster, for the warning that devices wait for it.

    Returns:
      The steps of the stage, and the last evaluation with `seconds` of all runs together.

    Raises:
      InputError: a checkpoint that does not fit, or is damaged.
      SaveError: a checkpoint could not be written, as when the disk is full.
      NonFinite: a logged loss or gradient norm is not finite; nothing is saved after that.
      Preempted: SIGTERM or Ctrl-C came; the state is saved. An evaluation that this put off or cut
        off is made when the stage goes on.
    """
    size = section.batch_size
    steps = duration(section, f"{stage}.", size, examples)
    warmup, constant = (
        duration(section.optimizer, f"{stage}.optimizer.{name}_", size, examples, False)
        for name in ("warmup", "constant")
    )
    with (
        checkpoint.closing(checkpoint.open_manager(folder, section.keep_checkpoints)) as manager,
        jax.set_mesh(mesh),
    ):
        _check_agreement(manager, folder)
        if (manager.latest_step() or 0) > steps:
            found = f"{steps} steps for {examples} images"
            expected = f"at least {manager.latest_step()}, which {folder} has reached"
            raise InputError(f"{stage}.steps", found, expected)
        # A last checkpoint that may be damaged is read, to make it again.
        if manager.latest_step() == steps and section.on_damaged_checkpoint == "refuse":
            results = checkpoint.read_meta(folder)["results"]
            if _evaluated(results):
                logger.info("%s: finished at step %d, nothing to do", stage, steps)
                return steps, results

        warn_of_schedule(stage, section, steps, warmup, constant)
        program = make_program(steps, warmup, constant)
        make_state, shapes = init_state(program.init, stream_key(seed, f"{stage}/params"), mesh)
        on_damaged = section.on_damaged_checkpoint
        state, results = _start(manager, make_state, shapes, program, init_from, stage, on_damaged)
        layout, frozen = (
            jax.tree.map(lambda leaf: leaf.sharding, tree) for tree in (shapes, program.frozen)
        )
        inputs = (layout, mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh), frozen)

        @functools.cache
        def jitted(step_fn):
            outputs = (layout, mesh_lib.replicated(mesh))
            return jax.jit(step_fn, donate_argnums=0, in_shardings=inputs, out_shardings=outputs)

        key, start = stream_key(seed, stage), int(state.step)
        began, earlier = time.monotonic(), results.get("seconds", 0.0)
        watch, clock = Watch(stage, advice), SaveClock(section.save_minutes, start)
        workdir = pathlib.Path(folder).parent
        traced = profiled_steps(config["profile"]), workdir / "profile"
        warn_of_no_effect(stage, section, shapes, traced[0], range(start, steps))
        made = Steps(stage, start, steps)
        with (
            contextlib.closing(batches(start)) as data,
            contextlib.closing(MetricsWriter(workdir, stage, start)) as writer,
            contextlib.closing(Profiler(*traced)) as profiler,
            made.bar,
            never_silent(made.told),
        ):
            metrics, logged = {}, _Logged(start, None)
            for step in range(start, steps + 1):
                made.wait(AHEAD)
                last, moved = step == steps, step > start
                stop = preemption.asked()
                at_interval = step > 0 and (last or step % section.evaluate_every == 0)
                # A run that was stopped before it had evaluated this step has saved no results.
                evaluate_now = at_interval and (moved or not _evaluated(results))
                save_now = moved and (last or stop or step % section.save_every == 0)
                save_now |= moved and clock.is_due(step)

                if moved and (evaluate_now or save_now or step % section.log_every == 0):
                    made.wait()
                    checkpoint.check(manager)
                    saved = manager.latest_step()
                    logged = _log(writer, stage, step, steps, size, metrics, logged, saved, watch)
                if evaluate_now:
                    found = None if stop else _evaluate(evaluate, state, writer, stage, workdir)
                    results, stop = found or {}, found is None or (not last and preemption.asked())
                    save_now |= stop or not moved
                    logged = _Logged(step, time.monotonic())
                    watch.reset()
                if save_now:
                    results["seconds"] = earlier + time.monotonic() - began
                    with watch.checkpoint():
                        checkpoint.save(manager, state, config, results)
                    clock.saved(step)
                if stop:
                    checkpoint.finish(manager)
                    done = f"saved at step {step}" if step else "not begun"
                    raise preemption.Preempted(f"{stage}: {done}")
                if last:
                    break

                with watch.input(metrics):
                    batch = mesh_lib.put_batch(mesh, next(data))
                profiler.before(step)
                state, new = jitted(program.step(step))(state, batch, key, program.frozen)
                made.dispatched(new)
                profiler.after(step, new)
                metrics |= new  # each kind of step has its own: the last of every kind is logged
        checkpoint.finish(manager)
    return steps, results


def _evaluated(results: Results) -> bool:
    """Whether results are those of an evaluation."""
    return bool(results.keys() - {"seconds"})


def _evaluate(
    evaluate: Callable[[TrainState, MetricsWriter], Results],
    state: TrainState,
    writer: MetricsWriter,
    stage: str,
    workdir: pathlib.Path,
) -> Results | None:
    """The numbers of a state, which are logged; None if the run is told to stop meanwhile."""
    step = int(state.step)
    try:
        results = dict(evaluate(state, writer))
    except preemption.Preempted:
        logger.info("%s step %d: its evaluation is left for the next start", stage, step)
        return None
    writer.scalars(step, results)
    found = ", ".join(f"{name} {value:.4g}" for name, value in results.items())
    logger.info("%s step %d: %s", stage, step, found)
    if jax.process_index() == 0:
        write_report(workdir)
    return results


def warn_of_schedule(stage: str, section: ConfigDict, steps: int, warmup: int, constant: int):
    """Says of a learning rate that its schedule is longer than the run."""
    field = f"{stage}.optimizer"
    optimizer.warn_of_warmup(field, section.optimizer.learning_rate, warmup, steps)
    if constant > steps:
        logger.warning(
            "%s.constant: %d steps, in a run of %d; the learning rate never falls",
            *(field, constant, steps),
        )


def warn_of_no_effect(
    stage: str, section: ConfigDict, state: TrainState, traced: range, steps: range
) -> None:
    """Says of names that no parameter has, and of steps to trace that this run will not make.

    Args:
      state: or its shapes.
      traced: what `profile` names.
      steps: that are left.
    """
    field = f"{stage}.optimizer"
    optimizer.warn_of_no_decay(field, state.params, section.optimizer.no_decay)
    if state.discriminator is not None:
        own = section.discriminator.optimizer.no_decay
        field = f"{stage}.discriminator.optimizer"
        optimizer.warn_of_no_decay(field, state.discriminator.params, own)
    # A trace begins with its first step.
    if traced and traced[0] not in steps:
        logger.warning(
            "profile: step %d is none of %s's, %d to %d; nothing is traced",
            *(traced[0], stage, steps.start, steps.stop - 1),
        )


def _check_agreement(manager: ocp.CheckpointManager, folder: str | os.PathLike) -> None:
    """Checks that all processes see the same checkpoints: a file may show up late elsewhere."""
    own = np.array([-1 if manager.latest_step() is None else manager.latest_step()])
    latest = [int(step) for step in np.concatenate(mesh_lib.from_all(own))]
    if len(set(latest)) > 1:
        found = f"as latest step by process: {latest} (-1: none)"
        raise InputError(folder, found, "the same: one folder that all processes see; or try again")


def _start(
    manager: ocp.CheckpointManager,
    make_state: Callable[[], TrainState],
    shapes: TrainState,
    program: Program,
    init_from: str | os.PathLike | None,
    stage: str,
    on_damaged: str,
) -> tuple[TrainState, Results]:
    """The three ways to start: own checkpoint, else `init_from`, else fresh and pretrained."""
    if manager.latest_step() is not None:
        state, results = checkpoint.restore_state(manager, shapes, on_damaged)
        logger.info("%s: goes on at step %d", stage, int(state.step))
        return state, results
    state = make_state()
    if init_from:
        params, step = checkpoint.restore_params(init_from, shapes.params, on_damaged)
        logger.info("%s: starts from %s, step %d", stage, init_from, step)
    else:
        params = _replaced(state.params, program.pretrained)
    params = _replaced(params, program.fixed)
    if params is state.params:
        return state, {}
    # Copies: the state is donated to the step.
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    return state.replace(params=params, ema=ema), {}


def _replaced(params: dict | jax.Array, others: dict | jax.Array) -> dict | jax.Array:
    """Parameters with copies of others in their places and layouts."""
    if not isinstance(others, dict):  # first: an array compared with a dict raises
        return jnp.copy(jax.device_put(others, params.sharding))
    if not others:
        return params
    return params | {name: _replaced(params[name], value) for name, value in others.items()}


class _Logged(NamedTuple):
    """When numbers were last logged; the time is None while the step may still be compiling."""

    step: int
    time: float | None


def _log(
    writer: MetricsWriter,
    stage: str,
    step: int,
    steps: int,
    batch_size: int,
    metrics: dict[str, jax.Array],
    logged: _Logged,
    saved: int | None,
    watch: Watch,
) -> _Logged:
    """Logs a step's numbers and the speed since the last time, unless they are not finite."""
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    watched = [name for kind in ("loss", "grad_norm") for name in values if name.endswith(kind)]
    for name in watched:
        if not math.isfinite(values[name]):
            when = f"between steps {logged.step} and {step}"
            kept = "no checkpoint was saved" if saved is None else f"the last save is step {saved}"
            raise NonFinite(f"{stage}: {name} became {values[name]} {when}; {kept}")
    now, eta = time.monotonic(), ""
    if logged.time is not None:
        rate = (step - logged.step) / (now - logged.time)
        values |= {"steps_per_second": rate, "images_per_second": rate * batch_size}
        values |= watch.split(step - logged.step, now - logged.time)
        eta = f", {rate:.1f} steps/s, {format_seconds((steps - step) / rate)} left"
    else:
        watch.reset()
    writer.scalars(step, values)
    logger.info("%s step %d/%d: %s%s", stage, step, steps, losses(values), eta)
    return _Logged(step, now)
