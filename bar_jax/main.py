"""The command: flags -> config -> job.

python -m bar_jax.main --config=configs/NAME.py --workdir=DIR [--config.FIELD=VALUE ...]
"""

import json
import logging
import os
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from bar_jax import config as config_lib
from bar_jax import files
from bar_jax.errors import InputError

logger = logging.getLogger("bar_jax")


def main(argv: Sequence[str]) -> int:
    """Runs the configured job; returns the exit status."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of what is meant
    try:
        config = parse(argv)
        return run(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(config: ConfigDict) -> int:
    """Validates a config and runs its job; returns the exit status."""
    config_lib.validate(config)
    # Imported here so that a misspelt field is told before JAX has started.
    from bar_jax import jobs, workdir
    from bar_jax.training import preemption

    job = jobs.JOBS[config.job]
    jobs.check_devices(config)
    if config.job != "describe":
        workdir.write_config(config)
    preemption.install()
    try:
        summary = job(config)
    except preemption.Preempted as stopped:
        logger.info("told to stop; %s. The same command goes on from there.", stopped)
        return 0
    print(json.dumps(summary, indent=2))
    return 0


def parse(argv: Sequence[str]) -> ConfigDict:
    """The config that a command line describes.

    Raises:
      InputError: an unknown flag, file or field, or a value of the wrong type.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "where everything is written", flag_values=values)
    config_flags.DEFINE_config_file(
        "config", lock_config=True, flag_values=values, help_string="a file of configs/"
    )
    argv = [_resolve(argument) for argument in argv]
    try:
        stray = values(argv)[1:]
        config = values.config
    except AttributeError as error:
        raise _unknown_field(error, argv) from error
    except (flags.Error, ValueError, TypeError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        message = str(error).splitlines()[0]
        raise InputError(
            "command line", message, "--config.FIELD=VALUE of the field's type"
        ) from error
    if stray:
        raise InputError("command line", repr(stray[0]), "--config.FIELD=VALUE")
    if config is None:
        raise InputError("--config", "nothing", "a file, such as configs/quickstart.py")
    if values.workdir:
        config.workdir = values.workdir
    if not config.workdir and config.job != "describe":
        raise InputError("--workdir", "nothing", "a folder for all that the job writes")
    return config


def _resolve(argument: str) -> str:
    """`--config=configs/NAME.py:SIZE` with the file found in the clone or the installed package."""
    flag, equals, value = argument.partition("=")
    if flag.lstrip("-") != "config" or not equals:
        return argument
    path, colon, size = value.partition(":")
    return f"{flag}={files.find(path)}{colon}{size}"


def _unknown_field(error: AttributeError, argv: Sequence[str]) -> InputError:
    """Finds which `--config.FIELD` does not exist."""
    fields = {name for name, _ in config_lib.flatten(config_lib.default_config())}
    for argument in argv:
        name = argument.lstrip("-").partition("=")[0]
        if name.startswith("config.") and name.removeprefix("config.") not in fields:
            return config_lib.unknown_field(name.removeprefix("config."))
    return InputError("config file", " ".join(str(error).split()), "fields of bar_jax/config.py")


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # threads make JAX's CPU SVD 20x slower
    sys.exit(main(sys.argv))
