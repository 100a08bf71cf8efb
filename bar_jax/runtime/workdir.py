"""What a workdir holds, and the guard of what was begun there.

.lock            whose run is in the workdir
config.json      all fields of the last job, as resolved
summary.json     final numbers, with the settings they depend on
metrics.jsonl    a line per logged step; tensorboard/ the same as events
tokenizer/       checkpoints of stage 1, with the config they were begun with; finished.json
cache/           tokens of the data set
generator/       checkpoints of stage 2, with the config they were begun with
classes.json     which class each label is
report.html      the run on one page; pictures/ are those of the evaluations
profile/         traces of --config.profile, for xprof
tokenizer.safetensors, generator.safetensors  both as published files, by job=export_weights
samples.npz      generated images and labels; samples.partial-...: of a set that is being drawn
evaluations.jsonl  a line per evaluation, with all that its numbers depend on
classifier-KEY.safetensors  that of the data set, which small samples are measured by
reference/       what samples are compared with, in the eyes of each network; reference.npz
basis/           A during training, and pictures of it; see inspection/basis.py
samples.png, samples_during_training.png, reconstructions.png, figure_4.png, figure_6.png, psnr.png
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from bar_jax.bases import RANDOM
from bar_jax.config import basis_inside, default_config, flatten, real_valued, settle
from bar_jax.config.presets import from_scratch
from bar_jax.runtime import workdir_lock
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.files import write_atomically
from bar_jax.runtime.mesh import all_or_none, first_alone

# Fields of a training stage that may change when it goes on: they alter what is seen of the run,
# or where it runs, but not what it computes.
FREE = (
    "basis.inverse", "data.path", "data.on_damaged", "data.num_workers",
    "accumulate", "remat", "log_every", "save_every", "save_minutes", "evaluate_every",
    "evaluate_images", "evaluate_metrics", "evaluate_samples", "keep_checkpoints",
    "on_damaged_checkpoint",
)  # fmt: skip
TOKENIZER_FIELDS = ("model.tokenizer.", "data.image_size")
GENERATOR_FIELDS = (
    *("model.tokenizer.kind", "model.tokenizer.kl.scale"),  # what its real-valued tokens are
    *("model.basis.", "model.generator.", "model.head."),
    *("data.image_size", "data.num_classes"),
)
# Fields that say how a model was trained, not what it is.
HOW_TRAINED = (
    *("dropout", "basis.objective", "basis.projection", "basis.delta", "basis.regularizer"),
    *("basis.snr_clip", "basis.inverse", "shared_time", "generator.time", "mask_ratio_min"),
    *("timesteps_per_token", "tokenizer.encoder.kind"),
)
FINISHED = "finished.json"  # in a part's folder: the step at which its training ended
TRAINING_FIELDS = {
    "tokenizer": ("seed", "dtype", "data.", "train_tokenizer.", *TOKENIZER_FIELDS),
    "generator": ("seed", "dtype", "data.", "train_generator.", *GENERATOR_FIELDS),
}


def to_json(config: ConfigDict) -> dict:
    """A config as JSON has it (tuples become lists)."""
    return json.loads(json.dumps(config.to_dict()))


def write_config(config: ConfigDict) -> None:
    """Writes `config.json`."""
    path = pathlib.Path(config.workdir)
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            write_atomically(path / "config.json", _dump(to_json(config)))


@contextlib.contextmanager
def in_use(config: ConfigDict) -> Iterator[None]:
    """Makes the workdir if need be, and keeps other runs out of it for a block.

    Raises:
      InputError: it cannot be written to, or another run is in it.
    """
    path = pathlib.Path(config.workdir)

    def make():
        with _writing(path):
            path.mkdir(parents=True, exist_ok=True)

    first_alone(make)
    with contextlib.ExitStack() as stack:
        with _writing(path):
            stack.enter_context(workdir_lock.held(config.workdir, config.job))
        yield


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    """Tells of a workdir that cannot be one."""
    try:
        yield
    except OSError as error:
        found = f"{path} ({error.strerror})"
        raise InputError("--workdir", found, "a folder that can be written to") from error


def check(config: ConfigDict) -> None:
    """Checks a config against what the workdir holds, before anything is written there.

    Raises:
      InputError: if a field differs with which a part was begun, and cannot change.
    """
    # Only bits have a tokenizer that is trained here, and a pipeline takes a finished one as it is.
    takes = real_valued(config) or is_finished(pathlib.Path(config.workdir) / "tokenizer")
    training = {
        "pipeline": ("generator",) if takes else ("tokenizer", "generator"),
        "train_tokenizer": ("tokenizer",),
        "train_generator": ("generator",),
    }.get(config.job, ())
    for part in ("tokenizer", "generator"):
        folder = pathlib.Path(config.workdir) / part
        if begun(folder):
            compare = _compare_training if part in training else _compare_model
            compare(folder / "config.json", config, part)
    if config.init_from and "tokenizer" in training:
        _check_size(pathlib.Path(config.init_from) / "tokenizer/config.json", config)
    read_summary(config.workdir)


def _check_size(path: pathlib.Path, config: ConfigDict) -> None:
    """Checks that the positions of a tokenizer to start from are those of the images."""
    stored = read_json(path)["data"]["image_size"] if path.exists() else config.data.image_size
    if stored != config.data.image_size:
        expected = f"{stored}, which the positions of {path.parent} are for"
        raise InputError("data.image_size", str(config.data.image_size), expected)


def read_summary(workdir: str | os.PathLike) -> dict[str, object]:
    """The final numbers so far, from `summary.json`."""
    path = pathlib.Path(workdir) / "summary.json"
    return read_json(path) if path.exists() else {}


def read_config(workdir: str | os.PathLike) -> ConfigDict:
    """The config of a workdir's last job.

    Raises:
      InputError: if there is none.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        raise InputError(str(path), "no such file", "a workdir that a job has written to")
    config, stored = default_config(), read_json(path)
    if "kind" not in stored.get("model", {}).get("tokenizer", {}).get("encoder", {}):
        from_scratch(config)  # from before there were others
    _update(config, stored)
    if config.sample.order == "raster":  # from before there were other bases
        config.sample.order = "basis"
    config.workdir = str(workdir)
    settle(config)
    return config


def _update(config: ConfigDict, values: dict) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _update(config[name], value)
        else:
            config[name] = tuple(value) if isinstance(value, list) else value


def begin_training(config: ConfigDict, part: str) -> pathlib.Path:
    """The folder of a part's checkpoints, with the config they are made with beside them.

    The config is stored when the first of them is about to be made, and compared afterwards.

    Args:
      part: `tokenizer` or `generator`.

    Raises:
      InputError: if training was begun with another value of a field that cannot change, or the
        folder cannot be written to.
    """
    folder = pathlib.Path(config.workdir) / part
    path = folder / "config.json"
    with all_or_none():
        if begun(folder):
            _compare_training(path, config, part)
        elif jax.process_index() == 0:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_atomically(path, _dump(to_json(config)))
            except OSError as error:
                found = f"a folder that cannot be written to ({error.strerror})"
                raise InputError(folder, found, "one that can, for checkpoints") from error
    return folder


def trained(config: ConfigDict, part: str) -> pathlib.Path:
    """The folder of a part's checkpoints, for use; the configured model must be the trained one.

    Raises:
      InputError: if nothing was trained there, or a model with other fields.
    """
    folder = pathlib.Path(config.workdir) / part
    path = folder / "config.json"
    if not path.exists():
        untrained = part == "tokenizer" and real_valued(config)
        jobs = "job=import_weights" if untrained else f"job=train_{part} or job=import_weights"
        expected = f"{jobs} to have run there"
        raise InputError(str(folder), "no trained model", expected)
    _compare_model(path, config, part)
    return folder


def finish_training(folder: pathlib.Path, step: int) -> None:
    """Notes that a part's training has ended, at a step that is saved in its folder."""
    path = folder / FINISHED
    if jax.process_index() == 0 and not path.exists():
        write_atomically(path, _dump({"step": step}))


def is_finished(folder: pathlib.Path) -> bool:
    """Whether a part was trained to its end or imported, here or where it was copied from."""
    if not begun(folder):
        return False
    if is_imported(folder):
        return True
    path = folder / FINISHED
    return path.exists() and (folder / str(read_json(path).get("step"))).is_dir()


def is_imported(folder: pathlib.Path) -> bool:
    """Whether a part's weights come from a published file."""
    return read_json(folder / "config.json").get("job") == "import_weights"


def trained_otherwise(config: ConfigDict) -> dict[str, object]:
    """What a finished tokenizer was trained with, of fields that the config has otherwise.

    Returns:
      Names and stored values; {} also where no tokenizer is finished. An imported one, which was
      not trained here, has the file as `published.tokenizer`.
    """
    folder = pathlib.Path(config.workdir) / "tokenizer"
    if real_valued(config) or not is_finished(folder):
        return {}
    path = folder / "config.json"
    if is_imported(folder):
        return {"published.tokenizer": read_json(path)["published"]["tokenizer"]}
    differing = _differing(path, config, _training_fields(config, "tokenizer"), FREE)
    return {name: stored for name, _, stored in differing}


def check_free(config: ConfigDict, part: str) -> None:
    """Checks that a part has no checkpoint yet, so that none is overwritten.

    Raises:
      InputError: if it has one.
    """
    folder = pathlib.Path(config.workdir) / part
    if _has_checkpoint(folder):
        raise InputError(folder, "a checkpoint", "none: it is not overwritten; another --workdir")


def begun(folder: pathlib.Path) -> bool:
    """Whether a part has a checkpoint: without one, nothing is lost if the config changes."""
    return (folder / "config.json").exists() and _has_checkpoint(folder)


def _has_checkpoint(folder: pathlib.Path) -> bool:
    return folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir())


def _compare_training(path: pathlib.Path, config: ConfigDict, part: str) -> None:
    if is_imported(path.parent):  # without an optimiser's state
        expected = f"another --workdir with --config.init_from={config.workdir} to train from them"
        raise InputError(path.parent, "imported weights", expected)
    _compare(path, config, _training_fields(config, part), FREE)


def _compare_model(path: pathlib.Path, config: ConfigDict, part: str) -> None:
    fields = TOKENIZER_FIELDS if part == "tokenizer" else GENERATOR_FIELDS
    _compare(path, config, (*fields, *_basis_fields(config, part)), free=HOW_TRAINED)


def _training_fields(config: ConfigDict, part: str) -> tuple[str, ...]:
    return (*TRAINING_FIELDS[part], *_basis_fields(config, part))


def _basis_fields(config: ConfigDict, part: str) -> tuple[str, ...]:
    """Those of the basis, where the tokenizer has it."""
    return ("model.basis.",) if part == "tokenizer" and basis_inside(config) else ()


def _compare(
    path: pathlib.Path, config: ConfigDict, fields: tuple[str, ...], free: tuple[str, ...]
) -> None:
    for name, value, stored in _differing(path, config, fields, free):
        begun = f"{stored}, with which {path.parent} was begun; or another workdir"
        raise InputError(name, str(value), begun)


def _differing(
    path: pathlib.Path, config: ConfigDict, fields: tuple[str, ...], free: tuple[str, ...]
) -> Iterator[tuple[str, object, object]]:
    """Fields that a stored config has otherwise: (name, value, stored value)."""
    stored = dict(flatten(ConfigDict(read_json(path))))
    if config.model.basis.kind != RANDOM:  # orders are not drawn
        free += tuple(f"order.{name}" for name, _ in flatten(config.model.generator.order))
    for name, value in flatten(ConfigDict(to_json(config))):
        fixed = name.startswith(fields) and not name.endswith(free)
        if name.startswith("train_tokenizer.weights."):  # a file may have been moved
            fixed &= pathlib.Path(str(value)).name != pathlib.Path(str(stored.get(name))).name
        if fixed and name in stored and stored[name] != value:
            yield name, value, stored[name]


def read_json(path: pathlib.Path) -> dict:
    """The JSON object of a file that a job wrote; InputError if it is none."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(path, f"an unreadable file ({error})", "JSON that a job wrote") from error
    if not isinstance(values, dict):
        raise InputError(path, type(values).__name__, "a JSON object that a job wrote")
    return values


def _dump(values: dict) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()
