"""Tests of bar_jax/runtime/distributed.py; real clusters run in tests/processes/."""

import subprocess
import sys

import pytest

from bar_jax.runtime import distributed
from bar_jax.runtime.distributed import Cluster, detected, from_flags
from bar_jax.runtime.errors import InputError

FLAGS = {"coordinator": "node1:12355", "num_processes": 4, "process_id": 3}
NONE = dict.fromkeys(FLAGS)


def test_flags_describe_a_cluster():
    assert from_flags(**FLAGS) == Cluster("node1:12355", 4, 3)


def test_without_flags_there_is_none():
    assert from_flags(**NONE) is None


@pytest.mark.parametrize("lacking", FLAGS)
def test_some_flags_alone_are_refused(lacking):
    with pytest.raises(InputError, match=f"^--{lacking}: found nothing, .* all three, or none"):
        from_flags(**FLAGS | {lacking: None})


@pytest.mark.parametrize(
    "flag, value, expected",
    [
        ("coordinator", "node1", "HOST:PORT"),
        ("coordinator", ":12355", "HOST:PORT"),
        ("coordinator", "node1:port", "HOST:PORT"),
        ("coordinator", "node1:70000", "HOST:PORT"),
        ("num_processes", 0, "at least 1"),
        ("process_id", -1, "0 to 3, below --num_processes"),
        ("process_id", 4, "0 to 3, below --num_processes"),
    ],
)
def test_wrong_flags_are_named(flag, value, expected):
    with pytest.raises(InputError, match=f"^--{flag}: found .*{value}.*, expected {expected}"):
        from_flags(**FLAGS | {flag: value})


# --- what is found without flags -----------------------------------------------------------------

SLURM = {  # what srun sets, of what is looked at
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}
EIGHT = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7", "SLURM_GPUS_ON_NODE": "8"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"}
URI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}
GKE = {"TPU_WORKER_HOSTNAMES": "host-0,host-1", "TPU_WORKER_ID": "1"}


@pytest.mark.parametrize(
    "environment, platforms",
    [
        ({}, ""),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16"}, ""),  # a batch script, outside of srun
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, ""),  # a shell in a job of 16 tasks
        ({"OMPI_COMM_WORLD_SIZE": "1"} | SLURM, ""),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, "tpu,cpu"),
        ({"TPU_SKIP_MDS_QUERY": "1"}, "tpu,cpu"),
        (GKE, "cpu"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ""),  # a notebook's pod
    ],
)
def test_one_process_needs_nothing(environment, platforms):
    assert detected(environment, platforms) is None


@pytest.mark.parametrize(
    "environment, platforms, options",
    [
        (SLURM, "cpu", {"num_processes": 16}),
        (OPEN_MPI | URI, "", {}),
        (OPEN_MPI | URI | SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, "", {}),  # mpirun in a job
        (GKE, "tpu,cpu", {}),
        (GKE | {"TPU_WORKER_HOSTNAMES": "host-0", "MEGASCALE_NUM_SLICES": "2"}, "tpu,cpu", {}),
        ({}, "tpu,cpu", {}),  # a TPU VM: its metadata server knows the others
    ],
)
def test_clusters_are_found(environment, platforms, options):
    assert detected(environment, platforms) == options


@pytest.mark.parametrize(
    "changes, devices",
    [
        (EIGHT, [1]),  # 8 tasks a node
        (EIGHT | {"SLURM_STEP_NUM_TASKS": "4"}, [4, 5, 6, 7]),  # 2
        (EIGHT | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}, list(range(8))),  # 1
        (EIGHT | {"CUDA_VISIBLE_DEVICES": "5"}, [0]),  # --gpus-per-task=1
    ],
)
def test_a_slurm_task_takes_its_gpus(changes, devices):
    """JAX alone would take one for each task, also where a task has the whole node."""
    assert detected(SLURM | changes, "cuda")["local_device_ids"] == devices


@pytest.mark.parametrize(
    "environment, where",
    [(OPEN_MPI, "Open MPI"), ({"JOB_COMPLETION_INDEX": "0"}, "Kubernetes")],
)
def test_what_cannot_be_found_is_told_with_the_flags(environment, where, monkeypatch):
    monkeypatch.setattr(distributed, "_has_kubernetes", lambda: False)
    with pytest.raises(InputError, match=f"^{where}: found .*--coordinator"):
        detected(environment, "")


@pytest.mark.parametrize(
    "environment, devices, expected",
    [
        ({"XLA_FLAGS": "--a=1 --xla_force_host_platform_device_count=400 --b"}, -1, "800"),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=400"}, 300, "600"),
        ({"NPROC": "7"}, 300, "7"),
        ({}, -1, None),
    ],
)
def test_threads_for_many_devices_of_a_cpu(environment, devices, expected, monkeypatch):
    """Two for each; what a user has set stays, and so does what is enough."""
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    distributed._make_threads(environment, devices)
    assert environment.get("NPROC") == expected


def test_a_process_alone_starts_nothing():
    code = (
        "from bar_jax.runtime import distributed; distributed.start(None); import jax;"
        "print(jax.distributed.is_initialized(), distributed.is_alone(), distributed.leave(3))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False True 3\n", done.stderr
