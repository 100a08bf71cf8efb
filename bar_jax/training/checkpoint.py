"""Checkpoints: Orbax, asynchronous, with parameters, EMA, optimiser state and metadata apart.

A step that was cut off while it was written is never seen again: the last complete one is used.
What is read is checked against the checksums that were taken when it was saved: a step whose files
were truncated or changed since then is refused by name, or passed over if the config allows it.
Evaluation restores only the parameters it needs, on any mesh.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import pathlib
import sys
import zlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from bar_jax import __version__
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime.errors import InputError, SaveError
from bar_jax.runtime.files import write_atomically
from bar_jax.training import checksum
from bar_jax.training.step import TrainState

logger = logging.getLogger(__name__)
ARRAYS = ("params", "ema", "opt_state", "discriminator")  # fields of the state, saved apart
# The metadata of version 0.1.0, which had no checksums.
WITHOUT_CHECKSUMS = {"step", "config", "version", "results"}


class DamagedCheckpoint(InputError):
    """A checkpoint whose files are not what was saved."""


def _handlers() -> dict[str, ocp.CheckpointHandler]:
    arrays = {item: ocp.StandardCheckpointHandler() for item in ARRAYS}
    return arrays | {"meta": ocp.JsonCheckpointHandler()}


def _items(state: TrainState) -> dict[str, object]:
    """What a state holds, by the name it is saved under."""
    items = {name: getattr(state, name) for name in ARRAYS}
    return {name: item for name, item in items.items() if item is not None}


# --- saving --------------------------------------------------------------------------------------


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which does not ask for preemptions itself.

    It would only log them. But its questions are numbered by training steps and asked late, from
    another thread: they would get in between those of `training.preemption`, which all processes
    must ask in the same order.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


def open_manager(directory: str | os.PathLike, keep: int) -> ocp.CheckpointManager:
    """The checkpoints of one stage, `keep` of them; leftovers of a cut-off save are removed.

    Raises:
      InputError: if the folder cannot be written to.
    """
    with mesh_lib.all_or_none():
        try:
            pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
            _probe(directory)
        except OSError as error:
            found = f"a folder that cannot be written to ({error.strerror})"
            raise InputError(directory, found, "one that can, for checkpoints") from error
    return _Manager(
        os.path.abspath(directory),
        item_handlers=_handlers(),
        options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
    )


@contextlib.contextmanager
def closing(manager: ocp.CheckpointManager) -> Iterator[ocp.CheckpointManager]:
    """Closes the manager when the block ends, after its last save.

    Raises:
      SaveError: if that save failed, unless the block raised something else.
    """
    try:
        yield manager
    except BaseException:
        with contextlib.suppress(Exception):  # a failed save is told again
            manager.close()
        raise
    with _saving(manager):
        manager.close()


def save(
    manager: ocp.CheckpointManager, state: TrainState, config: dict, results: dict[str, float]
) -> None:
    """Starts to save a state under its step; of one that is there already, the results alone.

    Args:
      config: the run's fields, to rebuild the model from.
      results: numbers to keep with it: the last evaluation, seconds of training so far.

    Raises:
      SaveError: if the save before could not be finished, or this one not be started.
    """
    step = int(state.step)
    if manager.latest_step() != step:
        _save(manager, step, _items(state), config, results)
    else:
        _replace_results(manager, step, results)


def save_params(directory: str | os.PathLike, params: dict, config: dict) -> None:
    """Saves parameters alone, as step 0 of a stage that is not trained here."""
    with closing(open_manager(directory, keep=1)) as manager:
        _save(manager, 0, {"params": params}, config, {})


def finish(manager: ocp.CheckpointManager) -> None:
    """Returns when all that was saved is on the disk; SaveError if it cannot be."""
    with _saving(manager):
        manager.wait_until_finished()


def check(manager: ocp.CheckpointManager) -> None:
    """Raises SaveError if the last save has failed by now; does not wait for it."""
    if not manager.is_saving_in_progress():
        finish(manager)


def _save(manager, step: int, items: dict, config: dict, results: dict[str, float]) -> None:
    meta = {"step": step, "config": config, "version": __version__, "results": results}
    meta["arrays"] = {
        f"{item}/{name}": [str(leaf.dtype), list(leaf.shape), value]
        for item, tree in items.items()
        for (name, value), leaf in zip(
            checksum.checksums(tree).items(), jax.tree.leaves(tree), strict=True
        )
    }
    meta["checksum"] = _meta_checksum(meta)
    arrays = {item: ocp.args.StandardSave(tree) for item, tree in items.items()}
    args = ocp.args.Composite(**arrays, meta=ocp.args.JsonSave(meta))
    with _saving(manager):
        _probe(manager.directory)
        manager.save(step, args=args, force=True)  # force: also off the interval


def _replace_results(manager, step: int, results: dict[str, float]) -> None:
    """Puts other results into the metadata of a step that is saved."""
    folder = pathlib.Path(manager.directory) / str(step)
    meta = _read_meta(folder) | {"results": results}
    meta["checksum"] = _meta_checksum(meta)
    if jax.process_index() == 0:
        with _saving(manager):
            write_atomically(folder / "meta/metadata", json.dumps(meta).encode())


def _probe(directory: str | os.PathLike) -> None:
    """Raises OSError if no folder can be made here.

    Orbax finds that out too late: some of its threads wait for minutes for the folder, and keep
    the program from ending.
    """
    probe = pathlib.Path(directory) / f".probe-{jax.process_index()}"
    with contextlib.suppress(FileExistsError):
        probe.mkdir()
    probe.rmdir()


@contextlib.contextmanager
def _saving(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Tells what keeps a save from being written, and where."""
    try:
        yield
    except (OSError, ValueError) as error:  # TensorStore's are ValueErrors
        found = getattr(error, "strerror", None) or str(error)
        complete = []
        with contextlib.suppress(OSError):  # the folder itself may be gone
            complete = [int(p.name) for p in manager.directory.iterdir() if _is_step(p)]
        kept = f"step {max(complete)} is the last one there" if complete else "there is none yet"
        message = f"{manager.directory}: a checkpoint could not be saved ({found}); {kept}"
        raise SaveError(message) from error


def _is_step(path: pathlib.Path) -> bool:
    return path.name.isdigit() and path.is_dir()


def _meta_checksum(meta: dict) -> int:
    """CRC-32 of all else that the metadata holds."""
    rest = {name: value for name, value in meta.items() if name != "checksum"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


# --- restoring -----------------------------------------------------------------------------------


def restore_state(
    manager: ocp.CheckpointManager, shapes: TrainState, on_damaged: str = "refuse"
) -> tuple[TrainState, dict[str, float]]:
    """The latest state, laid out as `shapes` says, and the results saved with it.

    Args:
      on_damaged: `refuse` a damaged checkpoint, or go on from the `previous` one. The damaged ones
        are then renamed to STEP.damaged, so that their steps can be saved anew.

    Raises:
      DamagedCheckpoint: if it is not what was saved, or none of them is.
      InputError: if a parameter is missing or of another shape.
    """
    items = _items(shapes)
    read = lambda folder: _read(folder, *_saved(folder), items)
    step, (restored, results) = _newest(manager, on_damaged, read)
    for damaged in (other for other in manager.all_steps() if other > step):
        _set_aside(manager.directory / str(damaged))
    manager.reload()
    number = jax.device_put(jnp.asarray(step, jnp.int32), shapes.step.sharding)
    return shapes.replace(step=number, **restored), results


def restore_params(
    directory: str | os.PathLike, shapes: dict, on_damaged: str = "refuse"
) -> tuple[dict, int]:
    """The latest parameters of a stage for evaluation: the EMA where one was kept.

    Args:
      shapes: `jax.ShapeDtypeStruct`s with the shardings to restore to.
      on_damaged: `refuse` a damaged checkpoint, or use the `previous` one; no file is changed.

    Returns:
      The parameters and the step they were saved at.

    Raises:
      DamagedCheckpoint: if it is not what was saved, or none of them is.
      InputError: if there is no checkpoint, or one of another shape.
    """

    def read(folder):
        meta, saved = _saved(folder)
        item = "ema" if any(name.startswith("ema/") for name in saved) else "params"
        return _read(folder, meta, saved, {item: shapes})[0][item]

    with _read_only(directory) as manager:
        if manager.latest_step() is None:
            expected = "a trained model; train first"
            raise InputError(str(directory), "no complete checkpoint", expected)
        step, params = _newest(manager, on_damaged, read)
    return params, step


def read_meta(directory: str | os.PathLike) -> dict | None:
    """The latest checkpoint's `step`, `config`, `version` and `results`; None where none is.

    Raises:
      DamagedCheckpoint: if it is not what was saved.
    """
    if not pathlib.Path(directory).is_dir():
        return None
    with _read_only(directory) as manager:
        if manager.latest_step() is None:
            return None
        return _newest(manager, "refuse", _read_meta)[1]


def weights_digest(directory: str | os.PathLike, step: int) -> str:
    """Names a checkpoint by the checksums of its arrays, which are not read.

    Raises:
      DamagedCheckpoint: if its metadata is not what was saved.
    """
    meta = _read_meta(pathlib.Path(os.path.abspath(directory)) / str(step))
    told = meta.get("arrays", meta["config"])  # version 0.1.0 had no checksums
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _read_only(directory: str | os.PathLike) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        os.path.abspath(directory),
        item_handlers=_handlers(),
        options=ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False),
    )


def _newest(
    manager: ocp.CheckpointManager, on_damaged: str, read: Callable[[pathlib.Path], object]
) -> tuple[int, object]:
    """The newest step that can be read, and what `read` made of its folder."""
    steps = sorted(manager.all_steps(), reverse=True)
    for step, previous in zip(steps, [*steps[1:], None], strict=True):
        try:
            return step, read(manager.directory / str(step))
        except DamagedCheckpoint as damage:
            if on_damaged == "refuse" or previous is None:
                raise
            logger.warning("%s. Step %d, before it, is used.", damage, previous)
    raise AssertionError(f"{manager.directory} has no step")


def _set_aside(folder: pathlib.Path) -> None:
    """Takes a damaged checkpoint's name from it; nothing is deleted."""
    if jax.process_index() == 0:
        aside, number = folder.with_name(f"{folder.name}.damaged"), 1
        while aside.exists():
            number += 1
            aside = folder.with_name(f"{folder.name}.damaged{number}")
        folder.rename(aside)
    mesh_lib.wait_for_all(f"set {folder.name} aside")


def _saved(folder: pathlib.Path) -> tuple[dict, dict[str, list]]:
    """A step's metadata, and its arrays: name -> dtype, shape and, if it was taken, checksum."""
    meta = _read_meta(folder)
    with _reading(folder):
        return meta, meta["arrays"] if "arrays" in meta else _described(folder)


def _read(
    folder: pathlib.Path, meta: dict, saved: dict[str, list], wanted: dict[str, object]
) -> tuple[dict, dict[str, float]]:
    """Items of a step, laid out as `wanted`, and the results saved with them; all checked.

    Orbax's handlers are called without its manager, in which a process that fails would leave the
    others waiting.
    """
    _check_shapes(folder, saved, wanted)
    handler, restored = ocp.StandardCheckpointHandler(), {}
    with _reading(folder):
        for item, tree in wanted.items():
            args = ocp.args.StandardRestore(tree)
            restored[item] = handler.restore(folder / item, args=args)
    if "arrays" in meta:
        for item, tree in restored.items():
            for name, found in checksum.checksums(tree).items():
                if found != saved[f"{item}/{name}"][2]:
                    raise _damaged(folder, f"{item}/{name} is not what was saved")
    return restored, meta["results"]


def _read_meta(folder: pathlib.Path) -> dict:
    """A step's metadata, checked."""
    with _reading(folder):
        meta = ocp.JsonCheckpointHandler().restore(folder / "meta")
        unchecked = meta.keys() == WITHOUT_CHECKSUMS
        if not unchecked and meta.pop("checksum") != _meta_checksum(meta):
            raise ValueError("meta is not what was saved")
    return meta


def _described(folder: pathlib.Path) -> dict[str, list]:
    """The arrays of a checkpoint without checksums: name -> dtype, shape."""
    handler, found = ocp.StandardCheckpointHandler(), {}
    for item in ARRAYS:
        if (folder / item).is_dir():
            for path, leaf in _leaves(handler.metadata(folder / item).tree):
                found[f"{item}/{checksum.name(path)}"] = [str(leaf.dtype), list(leaf.shape)]
    return found


@contextlib.contextmanager
def _reading(folder: pathlib.Path) -> Iterator[None]:
    """What fails in the block, in any process, is told as damage, in all of them."""
    reason, usual, unretrieved = None, sys.unraisablehook, logging.getLogger("asyncio")
    sys.unraisablehook = functools.partial(_without_given_up_reads, usual)
    unretrieved.addFilter(_is_no_given_up_read)
    try:
        yield
        sys.unraisablehook = usual
        unretrieved.removeFilter(_is_no_given_up_read)
    except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
        raise  # the files may be sound
    except Exception as error:  # of many kinds: a flipped bit may be anywhere
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    failed = mesh_lib.from_all(np.array([reason is not None]))
    if any(one.any() for one in failed):
        raise _damaged(folder, reason or "another process could not read it")


def _without_given_up_reads(usual: Callable, told: object) -> None:
    """`sys.unraisablehook` that leaves out what follows from a read that failed: the first is told.

    Orbax closes its event loop then; TensorStore's threads still bring it the others.
    """
    error = told.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        usual(told)


def _is_no_given_up_read(record: logging.LogRecord) -> bool:
    """A filter of asyncio's log: tasks that failed after the first are collected at some time."""
    return not record.getMessage().startswith("Task exception was never retrieved")


def _damaged(folder: pathlib.Path, reason: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(
        folder,
        f"a damaged checkpoint ({reason})",
        "intact files; with train_*.on_damaged_checkpoint=previous the one before it is used",
    )


def _check_shapes(folder: pathlib.Path, saved: dict[str, list], wanted: dict[str, object]) -> None:
    """Compares names, shapes and dtypes with what was saved; Orbax would cast dtypes silently."""
    for item, tree in wanted.items():
        where, prefix = f"{folder / item}", f"{item}/"
        found = {n.removeprefix(prefix): x for n, x in saved.items() if n.startswith(prefix)}
        expected = {checksum.name(path): leaf for path, leaf in _leaves(tree)}
        if expected and not found:
            raise InputError(where, f"no {item}", "a checkpoint of this model's training")
        for name in sorted(found.keys() ^ expected.keys()):
            told = f"an array {name}" if name in found else f"no array {name}"
            raise InputError(where, told, "the arrays of the configured model")
        for name, leaf in expected.items():
            dtype, shape = found[name][:2]
            if (jnp.dtype(dtype), tuple(shape)) != (leaf.dtype, leaf.shape):
                raise InputError(
                    f"{where}: {name}",
                    f"{dtype}{list(shape)}",
                    f"{leaf.dtype}{list(leaf.shape)} of the configured model",
                )


def _leaves(tree: object) -> list:
    is_leaf = lambda x: hasattr(x, "shape")
    return jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
