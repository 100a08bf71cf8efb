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
from bar_jax.config import FIELDS, flatten, migration, settle
from bar_jax.config.declaration import Affects
from bar_jax.runtime import workdir_lock
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.files import write_atomically
from bar_jax.runtime.mesh import all_or_none, first_alone
from bar_jax.tokenizers import basis_inside, is_trained

FINISHED = "finished.json"  # in a part's folder: the step at which its training ended
# What changes a part, and how it is trained. A basis belongs to the generator, or to a tokenizer
# that has it inside.
MODEL = {"tokenizer": Affects.TOKENIZER, "generator": Affects.GENERATOR | Affects.BASIS}
TRAINING = {
    "tokenizer": Affects.TOKENIZER_TRAINING,
    "generator": Affects.GENERATOR_TRAINING | Affects.BASIS_TRAINING,
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
    """Raises InputError for a workdir that cannot be made or written to."""
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
    takes = not is_trained(config) or is_finished(pathlib.Path(config.workdir) / "tokenizer")
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
    config = migration.restored(read_json(path))
    config.workdir = str(workdir)
    settle(config)
    return config


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
        untrained = part == "tokenizer" and not is_trained(config)
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
    if not is_trained(config) or not is_finished(folder):
        return {}
    path = folder / "config.json"
    if is_imported(folder):
        return {"published.tokenizer": read_json(path)["published"]["tokenizer"]}
    differing = _differing(path, config, pinned_by_training(config, "tokenizer"))
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
    _compare(path, config, pinned_by_training(config, part))


def _compare_model(path: pathlib.Path, config: ConfigDict, part: str) -> None:
    _compare(path, config, pinned_by_model(config, part))


def pinned_by_model(config: ConfigDict, part: str) -> list[str]:
    """Fields that say what a part is: they cannot change once it has a checkpoint."""
    inside = part == "tokenizer" and basis_inside(config)
    pinned = MODEL[part] | (Affects.BASIS if inside else Affects.NOTHING)
    return [name for name, field in FIELDS.items() if field.affects & pinned]


def pinned_by_training(config: ConfigDict, part: str) -> list[str]:
    """Fields that cannot change when a part's training goes on: those of the model among them."""
    inside = part == "tokenizer" and basis_inside(config)
    pinned = TRAINING[part] | (Affects.BASIS_TRAINING if inside else Affects.NOTHING)
    model = set(pinned_by_model(config, part))
    free = () if config.model.basis.kind == RANDOM else ("model.generator.order.",)  # not drawn
    return [
        name
        for name, field in FIELDS.items()
        if name in model or (field.affects & pinned and not name.startswith(free))
    ]


def _compare(path: pathlib.Path, config: ConfigDict, fields: list[str]) -> None:
    for name, value, stored in _differing(path, config, fields):
        begun = f"{stored}, with which {path.parent} was begun; or another workdir"
        raise InputError(name, str(value), begun)


def _differing(
    path: pathlib.Path, config: ConfigDict, fields: list[str]
) -> Iterator[tuple[str, object, object]]:
    """Those of `fields` that a stored config has otherwise: (name, value, stored value)."""
    stored = migration.migrated(read_json(path))
    given = dict(flatten(ConfigDict(to_json(config))))
    for name in fields:
        if name not in stored or stored[name] == given[name]:
            continue
        moved = (
            FIELDS[name].path and pathlib.Path(stored[name]).name == pathlib.Path(given[name]).name
        )
        if not moved:  # a file may lie elsewhere
            yield name, given[name], stored[name]


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
