"""Config files: what `--config` names."""

import inspect
import runpy

from ml_collections import ConfigDict

from bar_jax.config.derived import flatten, unknown_field
from bar_jax.config.fields import FIELDS
from bar_jax.runtime import files
from bar_jax.runtime.errors import InputError


def load_config(argument: str) -> ConfigDict:
    """The config of `configs/NAME.py` or `configs/NAME.py:SIZE`, in the clone or installed.

    Raises:
      InputError: no such file, no config in it, or a field that does not exist.
    """
    return read(argument)[0]


def read(argument: str) -> tuple[ConfigDict, list[str]]:
    """The config of a file, which is executed once, and the fields that the file itself sets.

    What its `:SIZE` changes the file does not set, nor what it makes empty.

    Raises:
      InputError: as `load_config`.
    """
    path, size = _split(argument)
    file = files.find(path)
    try:
        get_config = runpy.run_path(str(file))["get_config"]
        takes_size = bool(inspect.signature(get_config).parameters)
        config = get_config(size or None) if takes_size or size else get_config()
        own = get_config(None) if size else config
    except InputError:
        raise
    except Exception as error:  # whatever a user's Python may raise
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        expected = "a Python file whose get_config(size) returns a config"
        raise InputError(file, found, expected) from error
    if not isinstance(config, ConfigDict):
        raise InputError(file, f"get_config() -> {type(config).__name__}", "a ConfigDict")
    for name, _ in flatten(config):
        if name not in FIELDS:
            raise unknown_field(name)
    changed = [n for n, value in flatten(own) if value not in (FIELDS[n].default, "")]
    return config, changed


def _split(argument: str) -> tuple[str, str]:
    """A config file's path and what follows the colon, if anything."""
    if argument.endswith(".py"):  # a colon may also belong to the path (C:\\NAME.py)
        return argument, ""
    path, _, size = argument.rpartition(":")
    return path or argument, size
