"""Config files: what `--config` names."""

import runpy
from collections.abc import Iterable

from ml_collections import ConfigDict

from bar_jax import config as config_lib
from bar_jax.runtime import files
from bar_jax.runtime.errors import InputError


def load_config(argument: str) -> ConfigDict:
    """The config of `configs/NAME.py` or `configs/NAME.py:SIZE`, in the clone or installed.

    Raises:
      InputError: no such file, no config in it, or a field that does not exist.
    """
    path, size = _split(argument)
    file = files.find(path)
    try:
        config = runpy.run_path(str(file))["get_config"](size or None)
    except InputError:
        raise
    except Exception as error:  # whatever a user's Python may raise
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        expected = "a Python file whose get_config(size) returns a config"
        raise InputError(file, found, expected) from error
    if not isinstance(config, ConfigDict):
        raise InputError(file, f"get_config() -> {type(config).__name__}", "a ConfigDict")
    fields = {name for name, _ in config_lib.flatten(config_lib.default_config())}
    for name, _ in config_lib.flatten(config):
        if name not in fields:
            raise config_lib.unknown_field(name)
    return config


def set_by_hand(argument: str, flags: Iterable[str]) -> list[str]:
    """The fields that a user has set: on the command line, or other than the default in the file.

    Args:
      argument: as for `load_config`. What its `:SIZE` changes is not by hand, nor is what the file
        makes empty.
      flags: fields of the command line.
    """
    default = dict(config_lib.flatten(config_lib.default_config()))
    own = config_lib.flatten(load_config(_split(argument)[0]))
    changed = [name for name, value in own if value not in (default[name], "")]
    return list(dict.fromkeys([*flags, *changed]))


def _split(argument: str) -> tuple[str, str]:
    """A config file's path and what follows the colon, if anything."""
    if argument.endswith(".py"):  # a colon may also belong to the path (C:\\NAME.py)
        return argument, ""
    path, _, size = argument.rpartition(":")
    return path or argument, size
