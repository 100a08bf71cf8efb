"""Tests of launch/tpu.sh, tpu_keep.sh, gke.sh and gke_cluster.sh."""

import os
import shutil
import subprocess

import pytest

from tests import launching
from tests.launching import CLOUD, GKE, ROOT, TPU, dry, launch, python_that, remote, stand_in


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """What was called of what is not on this machine."""
    return launching.stand_ins(tmp_path, monkeypatch)


# --- TPUs ----------------------------------------------------------------------------------------


def test_tpu_slice_is_asked_for_and_given_back():
    (create,) = dry("tpu", "create", *TPU, "--type=v6e-8", "--spot", "--project=p")
    assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "slice"]
    expected = "--node-id=slice --accelerator-type=v6e-8 --spot --zone=us-west4-a --project=p"
    assert set(expected.split()) <= set(create)
    (delete,) = dry("tpu", "delete", *TPU)
    assert delete[3:6] == ["queued-resources", "delete", "slice"] and "--force" in delete


def test_tpu_steps_reach_all_workers():
    for step in ("setup", "run", "status", "stop"):
        commands = dry("tpu", step, *TPU, *CLOUD)
        assert all("--worker=all" in command for command in commands if command[0] == "gcloud")


def test_tpu_run_keeps_compiled_programs_beside_the_run():
    (run,) = dry("tpu", "run", *TPU, *CLOUD)
    assert "JAX_COMPILATION_CACHE_DIR=/mnt/bucket/compiled" in remote(run)


@pytest.mark.parametrize("mounted", [False, True])
def test_vm_mounts_the_bucket_once(mounted, outside, tmp_path):
    record, stand_ins, venv = tmp_path / "record", tmp_path / "bin", tmp_path / "venv"
    stand_in(stand_ins / "gcsfuse", "exit 1")  # it is installed
    stand_in(stand_ins / "sudo", f'echo "$@" >> {record}')
    stand_in(stand_ins / "mountpoint", f"exit {int(not mounted)}")
    (venv / "bin").mkdir(parents=True)
    stand_in(venv / "bin/python", "exit 0")
    done = launch("setup_vm", "runs", env={**os.environ, "BAR_JAX_VENV": str(venv)})
    assert done.returncode == 0, done.stderr
    calls = outside()
    assert len(calls) == (0 if mounted else 2)
    if not mounted:
        assert calls[0] == "mkdir -p /mnt/runs"
        assert calls[1].startswith("gcsfuse ") and calls[1].endswith(" runs /mnt/runs")


def test_vm_installs_what_mounts(outside, tmp_path):
    if shutil.which("gcsfuse"):
        pytest.skip("gcsfuse is installed here")
    record, stand_ins, venv = tmp_path / "record", tmp_path / "bin", tmp_path / "venv"
    stand_in(stand_ins / "sudo", f'echo "$@" >> {record}; [ $1 != tee ] || cat >> {record}')
    stand_in(stand_ins / "curl", "echo key")
    stand_in(stand_ins / "lsb_release", "echo jammy")
    (venv / "bin").mkdir(parents=True)
    stand_in(venv / "bin/python", "exit 0")
    done = launch("setup_vm", "runs", env={**os.environ, "BAR_JAX_VENV": str(venv)})
    assert done.returncode == 0, done.stderr
    key = "/usr/share/keyrings/cloud.google.asc"
    calls = outside()
    assert calls[:2] == [f"tee {key}", "key"]
    assert (
        calls[3]
        == f"deb [signed-by={key}] https://packages.cloud.google.com/apt gcsfuse-jammy main"
    )
    assert calls[5].startswith("apt-get ") and calls[5].endswith(" install gcsfuse")
    assert calls[-1].startswith("gcsfuse ")


def test_tpu_collects_from_the_bucket():
    copy, _, fetch = dry("tpu", "collect", *TPU, *CLOUD)
    assert remote(copy).endswith("cp bar_jax_logs/*.log /mnt/bucket/run/logs/")
    assert fetch == ["gcloud", "storage", "cp", "gs://bucket/run/logs/*.log", "logs/"]


def test_tpu_keep_asks_and_gives_back_once():
    commands = dry("tpu_keep", *TPU, *CLOUD)
    queued = [command[4] for command in commands if "queued-resources" in command]
    assert queued == ["create", "describe", "delete"]


@pytest.fixture
def keep(tmp_path, outside):
    """Runs tpu_keep.sh with a cloud of one worker, whose shell commands are run in a folder.

    The folder "vm" goes with the slice; "mnt", where the worker has the bucket, stays.

    The returned function takes what the process does at its first, second, ... start.
    """
    vm, stand_ins = tmp_path / "vm", tmp_path / "bin"
    # The slice is there while its folder is; it is ACTIVE but for what the file "state" says.
    cloud = f"""
        echo gcloud "$@" >> {tmp_path}/record
        case "$*" in
          *queued-resources\\ create*) rm -f {tmp_path}/state; mkdir {vm} ;;
          *queued-resources\\ delete*) rm -r {vm} ;;
          *queued-resources\\ describe*)
            [ -d {vm} ] && {{ cat {tmp_path}/state 2> /dev/null || echo ACTIVE; }} ;;
          *setup_vm.sh*)
            mkdir -p {vm}/bar_jax {vm}/bar_jax_venv/bin
            cp -r {ROOT}/launch {vm}/bar_jax && cp {tmp_path}/python {vm}/bar_jax_venv/bin ;;
          *--command=*)
            for each; do :; done
            each=${{each#--command=}}
            cd {vm} && HOME={vm} bash -c "${{each//\\/mnt\\//{tmp_path}/mnt/}}" ;;
        esac"""
    stand_in(stand_ins / "gcloud", cloud)
    stand_in(stand_ins / "sleep", "exec /bin/sleep 0.05")

    def run(*ends: str) -> subprocess.CompletedProcess:
        (tmp_path / "ends").write_text("".join(f"{end}\n" for end in ends))
        take = f"end=$(head -n 1 {tmp_path}/ends); sed -i 1d {tmp_path}/ends; eval $end"
        python_that(tmp_path, take)
        return launch("tpu_keep", *TPU, "--restarts=1", *CLOUD)

    return run


def test_tpu_keep_goes_on_after_a_crash_and_a_preemption(keep, outside, tmp_path):
    preempted = f"echo SUSPENDED > {tmp_path}/state; exit 75"
    done = keep("exit 134", preempted, "exit 0")
    assert done.returncode == 0 and "finished" in done.stdout, done.stderr
    calls = "\n".join(outside())
    assert calls.count("queued-resources create") == calls.count("setup_vm.sh") == 2
    assert calls.count("queued-resources delete") == 2 and not (tmp_path / "vm").exists()
    assert list((tmp_path / "mnt/bucket/run/logs").glob("*.log"))


@pytest.mark.parametrize("ends", [["exit 2"], ["exit 1", "exit 1"]], ids=["mistake", "crashes"])
def test_tpu_keep_gives_up_on_what_does_not_pass(ends, keep, tmp_path):
    done = keep(*ends)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: ")
    assert (tmp_path / "vm").exists()  # with the logs


# --- Kubernetes ----------------------------------------------------------------------------------


def manifest(*flags: str) -> dict:
    """The JobSet that is submitted."""
    yaml = pytest.importorskip("yaml")
    printed = launch("gke", "run", "--dry-run", *GKE, *flags, *CLOUD).stdout
    command, _, text = printed.partition("\n")
    assert command == "kubectl --context=gke_p_us-west4-a_bar-jax apply -f - << 'EOF'"
    return yaml.safe_load(text.removesuffix("EOF\n"))


def job_of(jobset: dict) -> tuple[dict, dict, dict]:
    """The Job of a JobSet, its pods and their container."""
    (workers,) = jobset["spec"]["replicatedJobs"]
    pods = workers["template"]["spec"]["template"]["spec"]
    (container,) = pods["containers"]
    return workers["template"]["spec"], pods, container


def test_gke_on_tpus_lets_jax_find_the_cluster():
    job, pods, container = job_of(manifest("--topology=4x8", "--pool=v5e"))
    assert job["completions"] == job["parallelism"] == 8
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pods["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x8"
    assert pods["nodeSelector"]["cloud.google.com/gke-nodepool"] == "v5e"
    assert container["command"][-3:] == list(CLOUD)
    assert {"name": "JAX_PLATFORMS", "value": "tpu,cpu"} in container["env"]


def test_gke_mounts_the_bucket_where_the_workdir_lies():
    job, pods, container = job_of(manifest("--bucket=bucket"))
    assert job["template"]["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"
    (volume,) = [volume for volume in pods["volumes"] if "csi" in volume]
    assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "bucket"
    assert " " not in volume["csi"]["volumeAttributes"]["mountOptions"]
    assert {"name": volume["name"], "mountPath": "/mnt/bucket"} in container["volumeMounts"]
    cache = {"name": "JAX_COMPILATION_CACHE_DIR", "value": "/mnt/bucket/compiled"}
    assert cache in container["env"]


def test_gke_account_of_the_pods_has_access():
    _, pods, _ = job_of(manifest())
    commands = dry("gke_cluster", "create", *GKE[:2])
    assert commands[-1][-3:] == ["create", "serviceaccount", pods["serviceAccountName"]]
    assert {"--addons=GcsFuseCsiDriver", "--workload-pool=p.svc.id.goog"} <= set(commands[0])


def test_gke_grant_finds_the_number_of_the_project(outside, tmp_path):
    record = f'echo "$@" >> {tmp_path}/record; [ $1 = storage ] || echo 123'
    stand_in(tmp_path / "bin/gcloud", record)
    assert launch("gke_cluster", "grant", *GKE[:3]).returncode == 0
    describe, bind = outside()
    assert describe == "projects describe p --format=value(projectNumber)"
    assert bind.startswith("storage buckets add-iam-policy-binding gs://bucket --role=")
    pool = "projects/123/locations/global/workloadIdentityPools/p.svc.id.goog"
    account = f"--member=principal://iam.googleapis.com/{pool}/subject/ns/default/sa/bar-jax"
    assert bind.endswith(account)


def test_gke_on_gpus_names_the_coordinator():
    flags = ("--machine=a3-highgpu-8g", "--nodes=2", "--name=run")
    job, pods, container = job_of(manifest(*flags))
    assert job["completions"] == 2 and container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    cluster = ["--coordinator=run-workers-0-0.run:12355", "--num_processes=2"]
    assert container["command"][-3:] == [*cluster, "--process_id=$(JOB_COMPLETION_INDEX)"]
    assert list(pods["nodeSelector"]) == ["cloud.google.com/gke-nodepool"]


def test_gke_command_keeps_quotes():
    prepare = "echo 'a' \"b\" & echo \\c"
    *_, container = job_of(manifest(f"--prepare={prepare}"))
    assert prepare in container["command"]


def test_gke_counts_crashes_and_not_preemptions():
    jobset = manifest("--restarts=5")
    policy = jobset["spec"]["failurePolicy"]
    (rule,) = policy["rules"]
    assert policy["maxRestarts"] == 5 and rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    stopped, taken = job_of(jobset)[0]["podFailurePolicy"]["rules"]
    assert stopped["onExitCodes"]["values"] == [75]
    assert taken["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]


def test_gke_submits_the_manifest_it_prints(outside, tmp_path):
    stand_in(tmp_path / "bin/kubectl", f"cat > {tmp_path}/applied")
    assert launch("gke", "run", *GKE, *CLOUD).returncode == 0
    printed = launch("gke", "run", "--dry-run", *GKE, *CLOUD).stdout.partition("\n")[2]
    assert printed == (tmp_path / "applied").read_text() + "EOF\n"


def test_gke_collects_a_log_for_each_process(outside, tmp_path):
    stand_in(tmp_path / "bin/gcloud", r"printf 'pod-0\ta\tb\npod-1\tc\npod-0\td\n'")
    assert launch("gke", "collect", *GKE, f"--logs={tmp_path}/logs").returncode == 0
    logs = {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert logs == {"pod-0.log": "a\tb\nd\n", "pod-1.log": "c\n"}


def test_gke_pools_have_the_hardware():
    (tpus,) = dry("gke_cluster", "create-pool", *GKE[:2], "--topology=2x4", "--spot")
    assert {"--tpu-topology=2x4", "--num-nodes=2", "--spot"} <= set(tpus)
    flags = ("--machine=a3-highgpu-8g", "--accelerator=nvidia-h100-80gb", "--nodes=3")
    (gpus,) = dry("gke_cluster", "create-pool", *GKE[:2], *flags)
    accelerator = "--accelerator=type=nvidia-h100-80gb,count=8,gpu-driver-version=latest"
    assert {accelerator, "--num-nodes=3", "--machine-type=a3-highgpu-8g"} <= set(gpus)
