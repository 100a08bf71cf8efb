"""What a run does when its disk fails it: real processes, `python -m bar_jax.main`, real disks.

Disks are file systems in memory that `unshare` mounts for one process and its children: no rights
are needed, and nothing is left behind. Where that is not allowed these tests are skipped.
tests/training/test_damaged_checkpoint.py has more faults, in one process.
"""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from bar_jax.training import checkpoint
from tests import running

pytestmark = pytest.mark.slow

UNSHARE = ["unshare", "--map-root-user", "--mount"]
CAN_MOUNT = (
    shutil.which("unshare")
    and not subprocess.run(
        [*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True
    ).returncode
)
needs_mount = pytest.mark.skipif(not CAN_MOUNT, reason="file systems cannot be mounted here")

STEPS = 12
FIELDS = {
    "job": "train_tokenizer",
    "data.image_size": 8,
    "model.tokenizer.encoder.depth": 1,
    "model.tokenizer.decoder.depth": 1,
    "train_tokenizer.steps": STEPS,
    "train_tokenizer.log_every": 1,
    "train_tokenizer.save_every": 4,
    "train_tokenizer.evaluate_every": STEPS,
    "train_tokenizer.keep_checkpoints": 3,
}


def command(workdir: Path, **changes) -> list[str]:
    fields = FIELDS | {name.replace("__", "."): value for name, value in changes.items()}
    return running.command(workdir, "configs/quickstart.py:tiny", fields)


def run(arguments: list[str]) -> subprocess.CompletedProcess:
    """Runs a command to its end."""
    return subprocess.run(
        arguments, env=running.environment(), cwd=running.ROOT, capture_output=True, text=True,
        timeout=running.TIMEOUT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A workdir that was made in one go; not to be changed."""
    workdir = tmp_path_factory.mktemp("faults") / "whole"
    done = run(command(workdir))
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir


def arrays(workdir: Path) -> dict[str, np.ndarray]:
    """Everything in the last checkpoint, by name."""
    names = ("params", "opt_state")
    with checkpoint.closing(checkpoint.open_manager(workdir / "tokenizer", 2)) as manager:
        items = ocp.args.Composite(**{name: ocp.args.StandardRestore() for name in names})
        restored = manager.restore(manager.latest_step(), args=items)
    leaves = jax.tree_util.tree_leaves_with_path({name: restored[name] for name in names})
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def losses(workdir: Path) -> dict[int, float]:
    """By step; a step that is logged twice fails."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    logged = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    assert len(dict(logged)) == len(logged) >= STEPS // 4
    return dict(logged)


def check_same(workdir: Path, whole: Path) -> None:
    """Bit for bit, as far as they were logged the losses too."""
    expected, found = arrays(whole), arrays(workdir)
    assert found.keys() == expected.keys() and len(expected) > 20
    assert not [n for n in expected if found[n].tobytes() != expected[n].tobytes()]
    found, expected = losses(workdir), losses(whole)
    assert found == {step: loss for step, loss in expected.items() if step in found}


def saved(workdir: Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "tokenizer").iterdir() if p.name.isdigit())


def damage(workdir: Path, step: int) -> None:
    """Flips bits all over the numbers of the parameters.

    Orbax divides them among files, in folders `d`, as its threads happen to come; and the largest
    of all files may be one that nobody reads, `_sharding`.
    """
    files = [*(workdir / f"tokenizer/{step}/params").rglob("d/*")]
    assert files
    for file in files:
        data = bytearray(file.read_bytes())
        for place in range(50, len(data), 100):
            data[place] ^= 1
        file.write_bytes(data)


# Only the checkpoints' folder is a small disk, so that it is a save that fails, not a log.
FULL_DISK = """
size=$1; folder=$2; out=$3; shift 3
mkdir -p "$folder/tokenizer" && mount -t tmpfs -o size=$size tmpfs "$folder/tokenizer" || exit 99
"$@"; status=$?
ls "$folder/tokenizer" > "$out/left"
mount -o remount,size=64m "$folder/tokenizer" && "$@" || exit 98
cp -r "$folder" "$out/finished"
exit $status
"""
PAGE = 4096


@pytest.mark.exhaustive
@needs_mount
def test_a_full_disk_during_a_save(whole, tmp_path):
    """The first checkpoint fits, the second does not; with room again the run ends as ever."""
    files = [p for p in (whole / "tokenizer/4").rglob("*") if p.is_file()]
    size = sum(math.ceil(p.stat().st_size / PAGE) * PAGE for p in files) * 3 // 2
    folder = tmp_path / "run"
    script = [*UNSHARE, "bash", "-c", FULL_DISK, "bash", str(size), str(folder), str(tmp_path)]
    done = run([*script, *command(folder)])
    assert done.returncode == 1, done.stderr[-3000:]
    told = f"error: {folder}/tokenizer: a checkpoint could not be saved ("
    [line] = [line for line in done.stderr.splitlines() if line.startswith(told)]
    assert "SaveError" not in done.stderr  # our traceback; threads of Orbax may print theirs
    assert "No space left on device" in line and line.endswith("step 4 is the last one there")
    left = (tmp_path / "left").read_text().split()
    assert [name for name in left if name.isdigit()] == ["4"]
    check_same(tmp_path / "finished", whole)


# A writer, told to write more than the disk holds; prints what it raises.
WRITERS = {
    "token shard": """
import numpy as np
from bar_jax.data import all_shards, plan_cache, shard_writer
plan = plan_cache(
    folder / "cache", fingerprint="a", dtype="bits", width=8, grid=(64, 64), num_classes=10,
    mirrored=False, preprocessing={}, num_examples=100, num_shards=1,
)
def write():
    with shard_writer(plan, all_shards(plan)[0]) as write:
        bits = np.random.default_rng(0).integers(0, 2, (100, 4096, 8), np.uint8)
        write(np.zeros(100, int), np.arange(100), bits)
""",
    "samples": """
import numpy as np
from ml_collections import ConfigDict
from bar_jax.sampling.unfinished import Unfinished
kept = Unfinished(ConfigDict({"workdir": str(folder)}), {}, 100)
def write():
    kept.append(np.ones((100, 64, 64, 3), np.uint8))
""",
}
SMALL_DISK = 'mount -t tmpfs -o size=64k tmpfs "$1" || exit 99; exec "$2" -c "$3" "$1"'
PRINTED = """
from bar_jax.runtime.errors import SaveError
from bar_jax.runtime.files import telling_full_disk
try:
    with telling_full_disk(folder):
        write()
except SaveError as error:
    print(error)
"""


@needs_mount
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_told_with_the_file(writer, tmp_path):
    """Neither another error nor SIGBUS, which a mapped file raises."""
    code = "import pathlib, sys; folder = pathlib.Path(sys.argv[1])" + WRITERS[writer] + PRINTED
    script = [*UNSHARE, "bash", "-c", SMALL_DISK, "bash", str(tmp_path), sys.executable, code]
    done = run(script)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(str(tmp_path)) and "No space left on device" in done.stdout


READ_ONLY = """
mount -t tmpfs tmpfs "$1" && cp -r "$2/." "$1" && mount -o remount,ro "$1" || exit 99
shift 2; exec "$@"
"""


@needs_mount
@pytest.mark.parametrize(
    "job", ["reconstruct", pytest.param("train_tokenizer", marks=pytest.mark.exhaustive)]
)
def test_a_read_only_workdir(whole, tmp_path, job):
    """It is told in one line, before anything is computed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    script = [*UNSHARE, "bash", "-c", READ_ONLY, "bash", str(folder), str(whole)]
    done = run([*script, *command(folder, job=job)])
    line = (
        f"error: --workdir: found {folder} (Read-only file system),"
        " expected a folder that can be written to\n"
    )
    assert (done.returncode, done.stderr, done.stdout) == (2, line, "")


@needs_mount
def test_checkpoints_on_a_read_only_disk(whole, tmp_path):
    """The workdir can be written to, the folder of its checkpoints cannot: no step is made."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / f"tokenizer/{STEPS}")
    shutil.copytree(folder / "tokenizer", tmp_path / "source")
    script = [*UNSHARE, "bash", "-c", READ_ONLY, "bash", str(folder / "tokenizer")]
    done = run([*script, str(tmp_path / "source"), *command(folder)])
    line = (
        f"error: {folder}/tokenizer: found a folder that cannot be written to (Read-only file"
        " system), expected one that can, for checkpoints"
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, line)


def test_a_damaged_checkpoint_is_refused(whole, tmp_path):
    """By name, in one line; nothing is changed."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / f"tokenizer/{STEPS}")
    damage(folder, 8)
    done = run(command(folder))
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"error: {folder}/tokenizer/8: found a damaged checkpoint")
    assert "on_damaged_checkpoint=previous" in line
    assert saved(folder) == [4, 8]


@pytest.mark.exhaustive  # training/test_loop.py does so in one process
@pytest.mark.parametrize(
    "step",
    [
        pytest.param(8, id="of a run that was cut off"),
        pytest.param(STEPS, id="of a finished run"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(whole, tmp_path, step):
    """The run goes on from the one before it, to the same end."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    if step == 8:
        shutil.rmtree(folder / f"tokenizer/{STEPS}")
    damage(folder, step)
    done = run(command(folder, train_tokenizer__on_damaged_checkpoint="previous"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{folder}/tokenizer/{step}: found a damaged checkpoint" in done.stderr
    assert (folder / f"tokenizer/{step}.damaged").is_dir()
    check_same(folder, whole)
