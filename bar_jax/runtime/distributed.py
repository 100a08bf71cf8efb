"""One command on many processes: finds the others of a cluster and joins them.

Every process runs the same command. On a TPU pod, under SLURM or Open MPI, and in an indexed
Kubernetes Job or JobSet (so on GKE) they find each other; elsewhere flags say where the first one
is. One process alone needs neither, also in an interactive shell of SLURM or on a single TPU VM.
"""

import logging
import os
import re
import sys
import threading
from collections.abc import Mapping, MutableMapping
from typing import NamedTuple

from bar_jax.runtime import preemption
from bar_jax.runtime.errors import InputError

logger = logging.getLogger(__name__)

HEARTBEAT = 100  # seconds without a sign of life after which a process counts as dead
LEAVE = 10  # seconds that a process which failed waits for others that failed like it


class Cluster(NamedTuple):
    """Processes that work together; its fields are flags of the command.

    Attributes:
      coordinator: HOST:PORT of process 0, a port that is free there.
      num_processes: how many there are.
      process_id: which one this is, from 0 on.
    """

    coordinator: str
    num_processes: int
    process_id: int


def from_flags(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Cluster | None:
    """The cluster that flags describe; None if none of them is given.

    Raises:
      InputError: some of the flags alone, or a value that cannot be.
    """
    given = Cluster(coordinator, num_processes, process_id)
    found = [f"--{name}" for name, value in given._asdict().items() if value is not None]
    if not found:
        return None
    for name, value in given._asdict().items():
        if value is None:
            beside = f"nothing, beside {' and '.join(found)}"
            raise InputError(f"--{name}", beside, "all three, or none of them")
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise InputError("--coordinator", repr(coordinator), "HOST:PORT of process 0")
    if num_processes < 1:
        raise InputError("--num_processes", str(num_processes), "at least 1")
    if not 0 <= process_id < num_processes:
        expected = f"0 to {num_processes - 1}, below --num_processes"
        raise InputError("--process_id", str(process_id), expected)
    return given


def start(cluster: Cluster | None) -> None:
    """Joins the other processes, if there are any; before anything asks JAX for devices.

    Args:
      cluster: as flags describe it; None looks for one.

    Raises:
      InputError: a cluster that cannot be joined without flags.
    """
    import jax

    _make_threads(os.environ, jax.config.jax_num_cpu_devices)
    platforms = jax.config.jax_platforms or ""
    if cluster is not None:
        # Which devices are its own is for the one who gives flags to say (JAX_LOCAL_DEVICE_IDS,
        # CUDA_VISIBLE_DEVICES): a scheduler around it may be of another cluster.
        options = {
            "coordinator_address": cluster.coordinator,
            "num_processes": cluster.num_processes,
            "process_id": cluster.process_id,
            "cluster_detection_method": "deactivate",
        }
    else:
        options = detected(os.environ, platforms)
    if options is None:
        return
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT, **options)
    except ValueError as error:  # JAX found no cluster
        if "tpu" in platforms:  # a TPU that is none of a pod
            return
        expected = "--coordinator, --num_processes and --process_id"
        raise InputError("other processes", f"none ({error})", expected) from error
    preemption.hand_over()
    if jax.default_backend() == "cpu":  # who come late now are not waited for long (mesh.py)
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("joined")
    process, count = jax.process_index(), jax.process_count()
    logger.info(
        "process %d of %d: %d of %d devices",
        *(process, count, jax.local_device_count(), jax.device_count()),
    )


def detected(environment: Mapping[str, str], platforms: str) -> dict[str, object] | None:
    """What `jax.distributed.initialize` needs to be given here; None where a process is alone.

    Args:
      environment: variables of the process.
      platforms: JAX's, such as "tpu,cpu"; on a TPU VM JAX sets them itself.

    Raises:
      InputError: there are others, but JAX does not find them by itself.
    """
    if "OMPI_COMM_WORLD_SIZE" in environment:
        count = int(environment["OMPI_COMM_WORLD_SIZE"])
        if count > 1 and "OMPI_MCA_orte_hnp_uri" not in environment:
            expected = (
                "Open MPI 4, which tells where the first one is; or --coordinator=HOST:PORT"
                " --num_processes=$OMPI_COMM_WORLD_SIZE --process_id=$OMPI_COMM_WORLD_RANK"
            )
            raise InputError("Open MPI", f"{count} processes that do not know each other", expected)
        return {} if count > 1 else None
    if "SLURM_STEP_NODELIST" in environment:  # inside srun
        # Of the step: an interactive shell is a step of one task in a job of many.
        tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))
        if int(tasks) < 2:
            return None
        devices = _devices_of_task(environment)
        return {"num_processes": int(tasks)} | ({"local_device_ids": devices} if devices else {})
    if "tpu" in platforms.split(","):
        hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
        slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1)
        if hosts:
            return {} if len(hosts.split(",")) * slices > 1 else None
        # No GKE: JAX asks the VM's metadata server, if there is one.
        return None if "TPU_SKIP_MDS_QUERY" in environment else {}
    if "JOB_COMPLETION_INDEX" in environment:  # a pod of an indexed Job or of a JobSet
        if not _has_kubernetes():
            found = "no package `kubernetes`, which finds the other processes"
            expected = "pip install kubernetes; or --coordinator, --num_processes and --process_id"
            raise InputError("Kubernetes", found, expected)
        return {}
    return None


def _make_threads(environment: MutableMapping[str, str], devices: int) -> None:
    """Asks XLA for threads enough where a CPU stands for several devices.

    It launches and runs programs in one pool, of as many threads as there are cores or devices. A
    launch holds its thread while 32 programs wait for its device; with no thread left for one of
    these that other devices are in the middle of, all wait for ever.

    Args:
      devices: that the CPU stands for, as JAX's config says; below 1 it does not.
    """
    flag = r"--xla_force_host_platform_device_count=(\d+)"
    counts = re.findall(flag, environment.get("XLA_FLAGS", ""))
    if devices < 1:
        devices = int(counts[-1]) if counts else 1
    if 2 * devices > (os.cpu_count() or 1):
        environment.setdefault("NPROC", str(2 * devices))


def _has_kubernetes() -> bool:
    import importlib.util

    return importlib.util.find_spec("kubernetes") is not None


def _devices_of_task(environment: Mapping[str, str]) -> list[int] | None:
    """The GPUs of a SLURM task, of those that it sees; None if it sees none.

    JAX would take one each, also where a task has a whole node of them.
    """
    seen = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if not seen:
        return None
    on_node = int(environment.get("SLURM_GPUS_ON_NODE", len(seen)))
    if len(seen) < on_node:  # SLURM shows each task its own
        return list(range(len(seen)))
    nodes = int(environment.get("SLURM_STEP_NUM_NODES", "1"))
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1")))
    per_task = max(1, len(seen) * nodes // tasks)
    first = int(environment["SLURM_LOCALID"]) * per_task
    return list(range(first, first + per_task))


def is_alone() -> bool:
    """Whether this process has not joined others."""
    jax = sys.modules.get("jax")
    return jax is None or not jax.distributed.is_initialized()


def leave(status: int) -> int:
    """Ends a process that failed; returns the status where it was alone.

    At its end a process waits for all others, minutes if need be. If they have failed like it, they
    are there soon. If not, they work on and wait for this one: they end when it is gone.
    """
    if is_alone():
        return status
    import jax

    shutdown = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    shutdown.start()
    shutdown.join(LEAVE)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
