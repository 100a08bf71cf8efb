"""The command: flags -> config -> job.

    python -m bar_jax.main --config=configs/NAME.py --workdir=DIR [--config.FIELD=VALUE ...]

The same command on every process of a cluster works on it together. TPU pods, SLURM, Open MPI and
GKE are found; elsewhere --coordinator=HOST:PORT --num_processes=N --process_id=I say so.

All fields, among them `job` and what it may be, are in bar_jax/config/ and bar_jax/jobs/.
"""

import ast
import contextlib
import difflib
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterable, Sequence

from ml_collections import ConfigDict
from tqdm.contrib.logging import logging_redirect_tqdm

from bar_jax import config as config_lib
from bar_jax.config import validation
from bar_jax.config.file import load_config, set_by_hand
from bar_jax.runtime import distributed, files, preemption
from bar_jax.runtime.errors import InputError, NonFinite, SaveError

logger = logging.getLogger("bar_jax")
FLAGS = ("config", "workdir", *distributed.Cluster._fields)
WITHOUT_WORKDIR = ("describe", "benchmark")  # these jobs print and write nothing


def main(argv: Sequence[str]) -> int:
    """Runs the configured job; returns the exit status."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of what is meant
    if {"--help", "-h"} & set(argv[1:]):
        print(__doc__)
        return 0
    try:
        config = parse(argv)
        with files.telling_full_disk(config.workdir):
            flags = _split(argv[1:])
            fields = [flag.removeprefix("config.") for flag in flags if flag.startswith("config.")]
            return run(config, distributed.from_flags(flags), set_by_hand(flags["config"], fields))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return distributed.leave(2)
    except (SaveError, NonFinite) as error:
        print(f"error: {error}", file=sys.stderr)
        return distributed.leave(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return distributed.leave(preemption.INTERRUPTED)
    except Exception:
        if distributed.is_alone():
            raise
        traceback.print_exc()
        return distributed.leave(1)


def run(
    config: ConfigDict,
    cluster: distributed.Cluster | None = None,
    by_hand: Iterable[str] = (),
) -> int:
    """Validates a config and runs its job; returns the exit status.

    Args:
      cluster: that flags describe; None looks for one.
      by_hand: fields that the user has set; those that change nothing are named.
    """
    config_lib.settle(config)
    if config.job in WITHOUT_WORKDIR:  # nothing to save: a signal ends them as any program
        return _run(config, cluster, by_hand)
    preemption.install()
    with preemption.hearing_ctrl_c():
        return _run(config, cluster, by_hand)


def _run(config: ConfigDict, cluster: distributed.Cluster | None, by_hand: Iterable[str]) -> int:
    validation.validate(config)
    # Imported here so that a misspelt field is told before JAX has started.
    import jax

    from bar_jax import jobs
    from bar_jax.config import effects as config_effects
    from bar_jax.runtime import mesh, workdir

    if config.job not in jobs.JOBS:
        raise InputError("job", repr(config.job), " | ".join(jobs.JOBS))
    job = jobs.JOBS[config.job]
    distributed.start(cluster)
    jobs.check_devices(config)
    if idle := config_effects.without_effect(config, by_hand):
        told = ", ".join(f"{field} (acts with {needed})" for field, needed in idle.items())
        logger.warning("without effect in this run: %s", told)
    with contextlib.ExitStack() as stack:
        writes = config.job not in WITHOUT_WORKDIR
        if writes:
            mesh.first_alone(lambda: workdir.check(config))
            stack.enter_context(workdir.in_use(config))
            mesh.first_alone(lambda: workdir.write_config(config))
        try:
            if writes:
                preemption.check(f"{config.job} was not begun")
            with logging_redirect_tqdm(loggers=[logging.getLogger()]):  # lines above the bar
                summary = job(config)
        except preemption.Preempted as stopped:
            logger.info("told to stop; %s. The same command goes on from there.", stopped)
            return 0
    if jax.process_index() == 0:
        print(json.dumps(summary, indent=2))
    return 0


def parse(argv: Sequence[str]) -> ConfigDict:
    """The config that a command line describes; `--flag=value` and `--flag value` are the same.

    Raises:
      InputError: an unknown flag, file or field, or a value of the wrong type.
    """
    given = _split(argv[1:])
    if not given.get("config"):
        raise InputError("--config", "nothing", "a file, such as configs/quickstart.py")
    config = load_config(given.pop("config"))
    workdir = given.pop("workdir", "")
    fields = dict(config_lib.flatten(config))
    for flag, text in given.items():
        if flag in distributed.Cluster._fields:
            continue
        name = flag.removeprefix("config.")
        if name not in fields:
            raise config_lib.unknown_field(name)
        config.update_from_flattened_dict({name: _value(name, text, fields[name])})
    config.workdir = workdir or config.workdir
    if not config.workdir and config.job not in WITHOUT_WORKDIR:
        raise InputError("--workdir", "nothing", "a folder for all that the job writes")
    return config


def _split(arguments: Sequence[str]) -> dict[str, str]:
    """Flags and their values; of a flag that is given twice, the last value."""
    given, rest = {}, list(arguments)
    while rest:
        argument = rest.pop(0)
        flag, equals, value = argument.partition("=")
        name = flag.lstrip("-")
        if name == flag:
            raise InputError("command line", repr(argument), "--config.FIELD=VALUE")
        if name not in FLAGS and not name.startswith("config."):
            close = difflib.get_close_matches(name, FLAGS, n=1, cutoff=0.5)
            hint = f"; did you mean --{close[0]}?" if close else ""
            raise InputError(flag, "no such flag", f"--config, --workdir, --config.FIELD{hint}")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise InputError(flag, "no value", f"{flag}=VALUE")
            value = rest.pop(0)
        given[name] = value
    return given


def _value(name: str, text: str, default: object) -> object:
    """A field's value as the command line has it.

    Raises:
      InputError: if it is not of the field's type.
    """
    kind = type(default)
    if kind is str:
        return text
    names = {int: "an integer", float: "a number", bool: "true or false", tuple: "(VALUE, ...)"}
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind is tuple:
            return _values(text, config_lib.FIELDS[name].of is str)
        return kind(text)
    except (KeyError, ValueError, SyntaxError) as error:
        raise InputError(f"config.{name}", repr(text), names[kind]) from error


def _values(text: str, texts: bool) -> tuple:
    """The values of `(3, 7)`, `[3, 7]`, `3,7` and `3`; texts need no quotes.

    Raises:
      ValueError, SyntaxError: brackets or numbers that are none.
    """
    if texts and text[:1] in ("(", "[") and not set("'\"") & set(text):
        text = text[1:-1].rstrip(",") if text[-1] in ")]" else text
    if text[:1] in ("(", "[") or (not texts and text[:1] in tuple("-0123456789")):
        value = ast.literal_eval(text)
        return tuple(value) if isinstance(value, tuple | list) else (value,)
    return tuple(part.strip() for part in text.split(",")) if text or not texts else ()


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # threads make JAX's CPU SVD 20x slower
    sys.exit(main(sys.argv))
