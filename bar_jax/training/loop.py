"""The training loop: evaluate, save, draw a batch, step.

Steps are dispatched ahead of the devices, so that these do not wait for the host; but two of them
at most, so that a signal to stop is answered soon, and what is shown is done.

Saving comes before the batch is drawn, and data and random numbers are functions of the step, so
a run that goes on from a checkpoint does what it would have done.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from clu import parameter_overview
from ml_collections import ConfigDict

from bar_jax.config import profiled_steps
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime import preemption
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.progress import AHEAD, Steps, never_silent
from bar_jax.runtime.writer import MetricsWriter
from bar_jax.training import checkpoint, optimizer
from bar_jax.training.optimizer import Durations
from bar_jax.training.save_clock import SaveClock
from bar_jax.training.step import Metrics, Program, TrainState, init_state, stream_key
from bar_jax.training.step_log import StepLog
from bar_jax.training.step_timer import Profiler, StepTimer
from bar_jax.visualize.report import write_report

logger = logging.getLogger(__name__)

Results = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """What is trained, on what, and where it is kept.

    Attributes:
      name: of the stage and of its section in the config.
      section: that section: batch size, duration, optimiser, intervals.
      seed: of all random numbers.
      examples: images of an epoch.
      make_program: durations -> what to train; not called if nothing is left to do.
      batches: the step to start at -> endless host batches, this process's rows.
      evaluate: final numbers of a state; called every `evaluate_every` steps and at the end.
      folder: of the checkpoints; logs go into its parent.
      init_from: folder of other checkpoints whose parameters to start from, or None.
      config: the run's fields, saved with each checkpoint; `profile` of it names steps to trace.
      advice: what makes input faster, for the warning that devices wait for it.
    """

    name: str
    section: ConfigDict
    seed: int
    examples: int
    make_program: Callable[[Durations], Program]
    batches: Callable[[int], Iterator[dict]]
    evaluate: Callable[[TrainState, MetricsWriter], Results]
    folder: pathlib.Path
    init_from: str | os.PathLike | None
    config: dict
    advice: str


def train(stage: Stage, mesh: jax.sharding.Mesh) -> tuple[int, Results]:
    """Trains one stage to its end, going on from its last checkpoint if there is one.

    Returns:
      The steps of the stage, and the last evaluation with `seconds` of all runs together.

    Raises:
      InputError: a checkpoint that does not fit, or is damaged.
      SaveError: a checkpoint could not be written, as when the disk is full.
      NonFinite: a logged loss or gradient norm is not finite; nothing is saved after that.
      Preempted: SIGTERM or Ctrl-C came; the state is saved. An evaluation that this put off or cut
        off is made when the stage goes on.
    """
    durations = optimizer.durations(stage.name, stage.section, stage.examples)
    manager = checkpoint.open_manager(stage.folder, stage.section.keep_checkpoints)
    with checkpoint.closing(manager), jax.set_mesh(mesh):
        _check_agreement(manager, stage.folder)
        results = _finished(stage, manager, durations.steps)
        if results is None:
            warn_of_schedule(stage.name, stage.section, durations)
            results = _train(stage, mesh, manager, stage.make_program(durations), durations.steps)
            checkpoint.finish(manager)
    return durations.steps, results


def _train(
    stage: Stage,
    mesh: jax.sharding.Mesh,
    manager: ocp.CheckpointManager,
    program: Program,
    steps: int,
) -> Results:
    """Makes the steps that are left; returns the last evaluation, as `train` does."""
    state, shapes, results = _start(stage, program, manager, mesh)
    update, start = _compiled(stage, program, shapes, mesh), int(state.step)
    section = stage.section
    began = time.monotonic() - results.get("seconds", 0.0)
    workdir, traced = stage.folder.parent, profiled_steps(stage.config["profile"])
    warn_of_no_effect(stage.name, section, shapes, traced, range(start, steps))
    timer, clock = StepTimer(stage.name, stage.advice), SaveClock(section.save_minutes, start)
    made, metrics = Steps(stage.name, start, steps), {}
    with (
        contextlib.closing(stage.batches(start)) as data,
        contextlib.closing(MetricsWriter(workdir, stage.name, start)) as writer,
        contextlib.closing(Profiler(traced, workdir / "profile")) as profiler,
        made.bar,
        never_silent(made.described),
    ):
        log = StepLog(stage.name, section.batch_size, range(start, steps), writer, timer)
        for step in range(start, steps + 1):
            made.wait(AHEAD)
            last, moved, stop = step == steps, step > start, preemption.asked()
            at_interval = step > 0 and (last or step % section.evaluate_every == 0)
            # A run that was stopped before it had evaluated this step has saved no results.
            evaluate_now = at_interval and (moved or not _evaluated(results))
            save_now = moved and (last or stop or step % section.save_every == 0)
            save_now |= moved and clock.is_due(step)
            if moved and (evaluate_now or save_now or step % section.log_every == 0):
                made.wait()
                checkpoint.check(manager)
                log.write(step, metrics, manager.latest_step())
            if evaluate_now:
                found = None if stop else _evaluate(stage, state, writer)
                results, stop = found or {}, found is None or (not last and preemption.asked())
                save_now |= stop or not moved
                log.restart(step)
            if save_now:
                results["seconds"] = time.monotonic() - began
                with timer.checkpoint():
                    checkpoint.save(manager, state, stage.config, results)
                clock.saved(step)
            if stop:
                checkpoint.finish(manager)
                done = f"saved at step {step}" if step else "not begun"
                raise preemption.Preempted(f"{stage.name}: {done}")
            if last:
                return results
            with timer.input(metrics):
                batch = mesh_lib.put_batch(mesh, next(data))
            profiler.before(step)
            state, new = update(step, state, batch)
            made.dispatched(new)
            profiler.after(step, new)
            metrics |= new  # each kind of step has its own: the last of every kind is logged


def _finished(stage: Stage, manager: ocp.CheckpointManager, steps: int) -> Results | None:
    """The results of a stage that has nothing left to do; None if it has.

    Raises:
      InputError: it has made more steps than it is to make.
    """
    latest = manager.latest_step()
    if (latest or 0) > steps:
        found = f"{steps} steps for {stage.examples} images"
        expected = f"at least {latest}, which {stage.folder} has reached"
        raise InputError(f"{stage.name}.steps", found, expected)
    # A last checkpoint that may be damaged is read, to make it again.
    if latest != steps or stage.section.on_damaged_checkpoint != "refuse":
        return None
    results = checkpoint.read_meta(stage.folder)["results"]
    if not _evaluated(results):
        return None
    logger.info("%s: finished at step %d, nothing to do", stage.name, steps)
    return results


def _compiled(
    stage: Stage, program: Program, shapes: TrainState, mesh: jax.sharding.Mesh
) -> Callable[[int, TrainState, dict], tuple[TrainState, Metrics]]:
    """(number of a step, state, batch) -> (state, metrics); each kind of step is compiled once."""
    key, whole = stream_key(stage.seed, stage.name), mesh_lib.replicated(mesh)
    layout, frozen = (
        jax.tree.map(lambda leaf: leaf.sharding, tree) for tree in (shapes, program.frozen)
    )

    @functools.cache
    def jitted(step):
        return jax.jit(
            step,
            donate_argnums=0,
            in_shardings=(layout, mesh_lib.batch_sharding(mesh), whole, frozen),
            out_shardings=(layout, whole),
        )

    return lambda number, state, batch: jitted(program.step(number))(
        state, batch, key, program.frozen
    )


def _evaluated(results: Results) -> bool:
    """Whether results are those of an evaluation."""
    return bool(results.keys() - {"seconds"})


def _evaluate(stage: Stage, state: TrainState, writer: MetricsWriter) -> Results | None:
    """The numbers of a state, which are logged; None if the run is told to stop meanwhile."""
    step = int(state.step)
    try:
        results = dict(stage.evaluate(state, writer))
    except preemption.Preempted:
        logger.info("%s step %d: its evaluation is left for the next start", stage.name, step)
        return None
    writer.scalars(step, results)
    found = ", ".join(f"{name} {value:.4g}" for name, value in results.items())
    logger.info("%s step %d: %s", stage.name, step, found)
    if jax.process_index() == 0:
        write_report(stage.folder.parent)
    return results


def warn_of_schedule(stage: str, section: ConfigDict, durations: Durations) -> None:
    """Says of a learning rate that its schedule is longer than the run."""
    (steps, warmup, constant), field = durations, f"{stage}.optimizer"
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
    stage: Stage,
    program: Program,
    manager: ocp.CheckpointManager,
    mesh: jax.sharding.Mesh,
) -> tuple[TrainState, TrainState, Results]:
    """The three ways to start: own checkpoint, else `init_from`, else fresh and pretrained.

    Returns:
      The state, its shapes and layout, and the last results.
    """
    key = stream_key(stage.seed, f"{stage.name}/params")
    make_state, shapes = init_state(program.init, key, mesh)
    on_damaged = stage.section.on_damaged_checkpoint
    table = parameter_overview.get_parameter_overview(shapes.params, include_stats="sharding")
    logger.info("%s: parameters\n%s", stage.name, table)
    if manager.latest_step() is not None:
        state, results = checkpoint.restore_state(manager, shapes, on_damaged)
        logger.info("%s: goes on at step %d", stage.name, int(state.step))
        return state, shapes, results
    state = make_state()
    if stage.init_from:
        params, step = checkpoint.restore_params(stage.init_from, shapes.params, on_damaged)
        logger.info("%s: starts from %s, step %d", stage.name, stage.init_from, step)
    else:
        params = _replaced(state.params, program.pretrained)
    params = _replaced(params, program.fixed)
    if params is state.params:
        return state, shapes, {}
    # Copies: the state is donated to the step.
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    return state.replace(params=params, ema=ema), shapes, {}


def _replaced(params: dict | jax.Array, others: dict | jax.Array) -> dict | jax.Array:
    """Parameters with copies of others in their places and layouts."""
    if not isinstance(others, dict):  # first: an array compared with a dict raises
        return jnp.copy(jax.device_put(others, params.sharding))
    if not others:
        return params
    return params | {name: _replaced(params[name], value) for name, value in others.items()}
