"""Config files: what `--config` names."""

import runpy

from ml_collections import ConfigDict

from bar_jax import config as config_lib
from bar_jax import files
from bar_jax.errors import InputError


def load_config(argument: str) -> ConfigDict:
    """The config of `configs/NAME.py` or `configs/NAME.py:SIZE`, in the clone or installed.

    Raises:
      InputError: no such file, no config in it, or a field that does not exist.
    """
    # A colon may also belong to the path (C:\\NAME.py).
    path, _, size = (argument, "", "") if argument.endswith(".py") else argument.rpartition(":")
    file = files.find(path or argument)
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
