"""The command: flags -> config -> job.

    python -m bar_jax.main --config=configs/NAME.py --workdir=DIR [--config.FIELD=VALUE ...]

The same command on every process of a cluster works on it together. TPU pods, SLURM, Open MPI and
GKE are found; elsewhere --coordinator=HOST:PORT --num_processes=N --process_id=I say so.

All fields, among them `job` and what it may be, are in bar_jax/config/ and bar_jax/jobs/;
--config.job=describe --config.describe.fields=true prints them.
"""

import contextlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterable, Sequence

from absl import flags
from ml_collections import ConfigDict
from tqdm.contrib.logging import logging_redirect_tqdm

from bar_jax.config import command_line, settle
from bar_jax.runtime import distributed, files, preemption
from bar_jax.runtime.errors import InputError, NonFinite, SaveError

logger = logging.getLogger("bar_jax")
HELP = {"-h", "-help", "--help", "--helpshort", "--helpfull"}


def main(argv: Sequence[str], flag_values: flags.FlagValues | None = None) -> int:
    """Runs the configured job; returns the exit status.

    Args:
      argv: the program's name and its arguments.
      flag_values: absl's `FLAGS`, for a program around this one; see `command_line.parse`.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of what is meant
    if HELP & set(argv[1:]):
        print(__doc__, command_line.help_text(), sep="\n")
        return 0
    try:
        command = command_line.parse(argv, flag_values)
        _check_workdir(command.config)
        with files.telling_full_disk(command.config.workdir):
            return run(*command)
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
    settle(config)
    if config.job == "describe" and config.describe.fields:
        return _print_fields()
    if not _has_workdir(config):  # nothing to save: a signal ends it as any program
        return _run(config, cluster, by_hand)
    preemption.install()
    with preemption.hearing_ctrl_c():
        return _run(config, cluster, by_hand)


def _run(config: ConfigDict, cluster: distributed.Cluster | None, by_hand: Iterable[str]) -> int:
    # Imported here so that a misspelt field is named before JAX is imported.
    import jax

    from bar_jax import jobs
    from bar_jax.config import effects as config_effects
    from bar_jax.config import validation
    from bar_jax.runtime import mesh, workdir

    validation.validate(config)
    job = jobs.JOBS[config.job]
    distributed.start(cluster)
    jobs.check_devices(config)
    if idle := config_effects.without_effect(config, by_hand):
        words = ", ".join(f"{field} (acts with {needed})" for field, needed in idle.items())
        logger.warning("without effect in this run: %s", words)
    with contextlib.ExitStack() as stack:
        if job.has_workdir:
            mesh.first_alone(lambda: workdir.check(config))
            stack.enter_context(workdir.in_use(config))
            mesh.first_alone(lambda: workdir.write_config(config))
        try:
            if job.has_workdir:
                preemption.check(f"{config.job} was not begun")
            with logging_redirect_tqdm(loggers=[logging.getLogger()]):  # lines above the bar
                summary = job.run(config)
        except preemption.Preempted as stopped:
            logger.info("told to stop; %s. The same command goes on from there.", stopped)
            return preemption.STOPPED
    if jax.process_index() == 0:
        print(json.dumps(summary, indent=2))
    return 0


def _print_fields() -> int:
    from bar_jax.config.table import field_table
    from bar_jax.config.validation import KINDS  # imports JAX

    print(field_table(KINDS))
    return 0


def parse(argv: Sequence[str]) -> ConfigDict:
    """The config that a command line describes.

    Raises:
      InputError: an unknown flag, file or field, or a value of the wrong type.
    """
    config = command_line.parse(argv).config
    _check_workdir(config)
    return config


def _has_workdir(config: ConfigDict) -> bool:
    """Whether the job writes anything; an unknown one is refused later, by name."""
    from bar_jax.jobs import JOBS

    return config.job not in JOBS or JOBS[config.job].has_workdir


def _check_workdir(config: ConfigDict) -> None:
    if not config.workdir and _has_workdir(config):
        raise InputError("--workdir", "nothing", "a folder for all that the job writes")


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # threads make JAX's CPU SVD 20x slower
    sys.exit(main(sys.argv, flags.FLAGS))
