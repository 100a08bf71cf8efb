"""Which class is label N: `classes.json` of a workdir, {"0": name, "1": name, ...}."""

import itertools
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from bar_jax.runtime.errors import InputError
from bar_jax.runtime.files import write_atomically

logger = logging.getLogger(__name__)
FILE = "classes.json"
LOGGED = 20  # classes in the log, at most


def read(workdir: str | os.PathLike) -> tuple[str, ...] | None:
    """The names of a workdir's classes in the order of their labels; None if none are kept.

    Raises:
      InputError: the file cannot be read.
    """
    path = Path(workdir) / FILE
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text())
        return tuple(stored[str(label)] for label in range(len(stored)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"an unreadable file ({type(error).__name__}: {error})"
        raise InputError(path, found, 'JSON that a job wrote, {"0": name, ...}') from error


def keep(config: ConfigDict, names: Sequence[str]) -> None:
    """Writes to the log and the workdir which class each label is.

    Args:
      names: of the data set's classes, in the order of their labels.

    Raises:
      InputError: as `check`.
    """
    check(config, names)
    entries = [f"{label} {name}" for label, name in enumerate(names)]
    if len(entries) > LOGGED:
        entries = [*entries[: LOGGED - 1], f"... {entries[-1]}"]
    path = Path(config.workdir) / FILE
    logger.info("labels: %s (%s)", ", ".join(entries), path)
    if read(config.workdir) != tuple(names):
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dict(enumerate(names)), indent=2, ensure_ascii=False)
        write_atomically(path, f"{text}\n".encode())


def check(config: ConfigDict, names: Sequence[str]) -> None:
    """Checks that labels mean what they meant when the workdir's tokens were labelled with them.

    Raises:
      InputError: naming the first class that is another one.
    """
    folder = Path(config.workdir)
    if not (folder / "cache/train/plan.json").exists():
        return
    kept = read(folder)
    if kept is None:  # from before it was kept; class folders were in the order of text then
        kept = sorted(names) if config.data.source in ("folder", "tokens") else names
    for label, (name, meant) in enumerate(itertools.zip_longest(names, kept)):
        if name != meant:
            expected = f"{meant!r}, as the tokens of {folder} are labelled; or another workdir"
            raise InputError(f"data.path: class {label}", repr(name), expected)
