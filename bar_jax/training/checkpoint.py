"""Checkpoints: Orbax, asynchronous, with parameters, EMA, optimiser state and metadata apart.

A step that was cut off while it was written is never seen again: the last complete one is used.
Evaluation restores only the parameters it needs, on any mesh.
"""

import contextlib
import os
import pathlib

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from bar_jax import __version__
from bar_jax.errors import InputError
from bar_jax.training.step import TrainState

ARRAYS = ("params", "ema", "opt_state", "discriminator")  # fields of the state, saved apart


def _handlers() -> dict[str, ocp.CheckpointHandler]:
    arrays = {item: ocp.StandardCheckpointHandler() for item in ARRAYS}
    return arrays | {"meta": ocp.JsonCheckpointHandler()}


def _items(state: TrainState) -> dict[str, object]:
    """What a state holds, by the name it is saved under."""
    items = {name: getattr(state, name) for name in ARRAYS}
    return {name: item for name, item in items.items() if item is not None}


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which does not ask for preemptions itself.

    It would only log them. But its questions are numbered by training steps and asked late, from
    another thread: they would get in between those of `training.preemption`, which all processes
    must ask in the same order.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


def open_manager(directory: str | os.PathLike, keep: int) -> ocp.CheckpointManager:
    """The checkpoints of one stage, `keep` of them; leftovers of a cut-off save are removed."""
    return _Manager(
        os.path.abspath(directory),
        item_handlers=_handlers(),
        options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
    )


def save(
    manager: ocp.CheckpointManager, state: TrainState, config: dict, results: dict[str, float]
) -> None:
    """Starts to save a state under its step, unless that step is there already.

    Args:
      config: the run's fields, to rebuild the model from.
      results: numbers to keep with it: the last evaluation, seconds of training so far.
    """
    step = int(state.step)
    if manager.latest_step() == step:
        return
    arrays = {name: ocp.args.StandardSave(item) for name, item in _items(state).items()}
    meta = ocp.args.JsonSave(_meta(step, config, results))
    # force: also off the interval, as a preempted run needs.
    manager.save(step, args=ocp.args.Composite(**arrays, meta=meta), force=True)


def save_params(directory: str | os.PathLike, params: dict, config: dict) -> None:
    """Saves parameters alone, as step 0 of a stage that is not trained here."""
    with contextlib.closing(open_manager(directory, keep=1)) as manager:
        arrays, meta = ocp.args.StandardSave(params), ocp.args.JsonSave(_meta(0, config, {}))
        manager.save(0, args=ocp.args.Composite(params=arrays, meta=meta), force=True)
        manager.wait_until_finished()


def _meta(step: int, config: dict, results: dict[str, float]) -> dict[str, object]:
    return {"step": step, "config": config, "version": __version__, "results": results}


def restore_state(
    manager: ocp.CheckpointManager, shapes: TrainState
) -> tuple[TrainState, dict[str, float]]:
    """The latest state, laid out as `shapes` says, and the results saved with it.

    Raises:
      InputError: if a parameter is missing or of another shape.
    """
    step = manager.latest_step()
    items = _items(shapes)
    _check_shapes(manager, step, items)
    arrays = {name: ocp.args.StandardRestore(item) for name, item in items.items()}
    restored = manager.restore(step, args=ocp.args.Composite(**arrays, meta=ocp.args.JsonRestore()))
    number = jax.device_put(jnp.asarray(step, jnp.int32), shapes.step.sharding)
    state = shapes.replace(step=number, **{name: restored[name] for name in items})
    return state, restored["meta"]["results"]


def restore_params(directory: str | os.PathLike, shapes: dict) -> tuple[dict, int]:
    """The latest parameters of a stage for evaluation: the EMA where one was kept.

    Args:
      shapes: `jax.ShapeDtypeStruct`s with the shardings to restore to.

    Returns:
      The parameters and the step they were saved at.

    Raises:
      InputError: if there is no checkpoint, or one of another shape.
    """
    with _read_only(directory) as manager:
        step = _latest(manager, directory)
        item = "ema" if "ema" in _saved_items(manager, step) else "params"
        _check_shapes(manager, step, {item: shapes})
        restored = manager.restore(
            step, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(shapes)})
        )
        return restored[item], step


def read_meta(directory: str | os.PathLike) -> dict | None:
    """The latest checkpoint's `step`, `config`, `version` and `results`; None where none is."""
    if not pathlib.Path(directory).is_dir():
        return None
    with _read_only(directory) as manager:
        step = manager.latest_step()
        if step is None:
            return None
        return manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]


def _read_only(directory: str | os.PathLike) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        os.path.abspath(directory),
        item_handlers=_handlers(),
        options=ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False),
    )


def _latest(manager: ocp.CheckpointManager, directory: str | os.PathLike) -> int:
    step = manager.latest_step()
    if step is None:
        raise InputError(str(directory), "no complete checkpoint", "a trained model; train first")
    return step


def _saved_items(manager: ocp.CheckpointManager, step: int) -> dict[str, object]:
    """The metadata of the items that a step holds."""
    return {name: item for name, item in manager.item_metadata(step).items() if item is not None}


def _check_shapes(manager: ocp.CheckpointManager, step: int, items: dict[str, object]) -> None:
    """Compares names, shapes and dtypes with what was saved; Orbax would cast dtypes silently."""
    metadata = _saved_items(manager, step)
    for item, wanted in items.items():
        where = f"{manager.directory / str(step) / item}"
        if item not in metadata:
            raise InputError(where, f"no {item}", "a checkpoint of this model's training")
        saved = {_name(path): leaf for path, leaf in _leaves(metadata[item].tree)}
        expected = {_name(path): leaf for path, leaf in _leaves(wanted)}
        for name in sorted(saved.keys() ^ expected.keys()):
            found = f"an array {name}" if name in saved else f"no array {name}"
            raise InputError(where, found, "the arrays of the configured model")
        for name, leaf in expected.items():
            found = tuple(saved[name].shape), jnp.dtype(saved[name].dtype)
            if found != (leaf.shape, leaf.dtype):
                raise InputError(
                    f"{where}: {name}",
                    f"{found[1]}{list(found[0])}",
                    f"{leaf.dtype}{list(leaf.shape)} of the configured model",
                )


def _leaves(tree: object) -> list:
    is_leaf = lambda x: hasattr(x, "shape")
    return jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
