"""A run that is cut off, again and again, ends as one that was not: bit for bit, on CPU.

Real processes, `python -m bar_jax.main`, and real signals. One workdir is made in one go. In
another, the same command is stopped (SIGTERM, SIGINT) and killed (SIGKILL) in every long job and
started again each time, until it is finished. BAR_JAX_KILLS=20 kills each training that often at
random.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from bar_jax.runtime import preemption
from bar_jax.training import checkpoint

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("BAR_JAX_KILLS", "1"))  # more of them, at random, in each training
SEED = int(os.environ.get("BAR_JAX_KILLS_SEED", "0"))  # of those moments
STEPS = 120 + 60 * KILLS
TIMEOUT = 300  # seconds that a process may take to get where it is awaited
PARTS = {"train_tokenizer": "tokenizer", "train_generator": "generator"}
STOPS = {"train_tokenizer": signal.SIGTERM, "train_generator": signal.SIGINT}
TIMES = ("per_second", "_seconds")  # how measured speeds end

FIELDS = {
    "data.image_size": 8,
    "model.tokenizer.encoder.depth": 1,
    "model.tokenizer.decoder.depth": 1,
    "model.generator.depth": 1,
    "model.generator.dropout": 0.1,  # so that each step's random numbers matter
    "model.generator.order.anneal_end_steps": STEPS,
    "encode.shards": 20,
    "sample.guidance_scale": 1.0,
    "sample.unmasking_schedule": (16,),
} | {
    f"{stage}.{name}": value
    for stage in PARTS
    for name, value in {
        "steps": STEPS,
        "ema_decay": 0.99,
        "optimizer.warmup_steps": 20,
        "log_every": 1,
        "save_every": 10,
        "evaluate_every": STEPS // 2,
        "keep_checkpoints": 2,
    }.items()
}


class Run:
    """A process that works on a workdir."""

    def __init__(self, workdir: Path, env: dict[str, str]):
        self._log = workdir.parent / f"{workdir.name}.{time.monotonic_ns()}.log"
        fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
        command = [sys.executable, "-m", "bar_jax.main", "--config=configs/quickstart.py:tiny"]
        # A folder of compiled programs makes a start cheap; the programs are the same.
        env = env | {
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        }
        # A shell's job in the background ignores Ctrl-C, and so do its processes.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*command, f"--workdir={workdir}", *fields], env=env, stdout=log, stderr=log
            )

    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text()

    def end(self, sent: signal.Signals | None = None) -> int:
        """Sends a signal, if one is given, and waits for the end; returns the exit status."""
        if sent is not None:
            self._process.send_signal(sent)
        try:
            return self._process.wait(TIMEOUT)
        finally:
            self._process.kill()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Lets it work until a condition holds."""
        start = time.monotonic()
        while not condition():
            if self._process.poll() is not None or time.monotonic() > start + TIMEOUT:
                status = self.end(signal.SIGKILL)
                pytest.fail(f"no {what}; status {status}, printed:\n{self.log()[-3000:]}")
            time.sleep(0.002)

    def until_step(self, stage: str, step: int) -> None:
        """Lets it work until it has made this step itself."""
        made = lambda: max(map(int, re.findall(rf"{stage} step (\d+)/", self.log())), default=0)
        self.until(lambda: made() >= step, f"step {step} of {stage}")


def saved_step(workdir: Path, part: str) -> int:
    """The last complete checkpoint's step; 0 if there is none."""
    return max((int(p.name) for p in (workdir / part).glob("*") if p.name.isdigit()), default=0)


def leftovers(workdir: Path, part: str) -> list[str]:
    return [path.name for path in (workdir / part).glob("*.orbax-checkpoint-tmp")]


def cut_off_training(workdir: Path, stage: str, start: Callable[[], Run], events: list) -> None:
    """Stops it, kills it while it saves, and kills it at random moments."""
    part, draw = PARTS[stage], random.Random(f"{SEED} {stage}")

    run, before = start(), saved_step(workdir, part)
    run.until_step(stage, before + 3)
    status = run.end(STOPS[stage])
    events.append({"stage": stage, "cut": "stopped", "status": status, "log": run.log()}
                  | {"before": before, "saved": saved_step(workdir, part)})  # fmt: skip

    for _ in range(4):  # the kill may come just too late
        run, before = start(), saved_step(workdir, part)
        run.until_step(stage, before + 1)
        run.until(lambda: not leftovers(workdir, part), "removal of an earlier run's leftover")
        run.until(lambda: leftovers(workdir, part), "save")
        run.end(signal.SIGKILL)
        if left := leftovers(workdir, part):
            break
    events.append({"stage": stage, "cut": "killed while saving", "left": left})

    for _ in range(KILLS):
        run, before = start(), saved_step(workdir, part)
        step, pause = draw.randint(before + 1, before + 25), draw.uniform(0, 0.1)
        if step > STEPS - 20:
            run.end(signal.SIGKILL)
            break
        run.until_step(stage, step)
        time.sleep(pause)
        run.end(signal.SIGKILL)
        after = saved_step(workdir, part)
        print(f"{stage}: from {before}, killed {pause:.3f} s after step {step}, saved {after}")
        events.append({"stage": stage, "cut": "killed", "left": leftovers(workdir, part)})


def cut_off_encoding(workdir: Path, start: Callable[[], Run], events: list) -> None:
    """Kills it and stops it, each between two shards of the training images."""
    shards = lambda: len(list(workdir.glob("cache/train/*.array_record")))
    run = start()
    run.until(lambda: shards() >= 3, "third shard")
    run.end(signal.SIGKILL)
    killed = shards()
    run = start()
    run.until(lambda: shards() >= killed + 2, "two more shards")
    status = run.end(signal.SIGTERM)
    events.append({"stage": "encode", "cut": "killed and stopped", "status": status}
                  | {"shards": (killed, shards())})  # fmt: skip


@pytest.fixture(scope="module")
def made() -> dict:
    """What the first test that asks makes for all."""
    return {}


@pytest.fixture
def runs(made, user_env, tmp_path_factory) -> dict:
    """Workdirs `whole`, made in one go, and `cut`, finished in the end; how that was cut off."""
    if not made:
        folder, events = tmp_path_factory.mktemp("resume"), []
        # tensorboardX imports torch if it can, which takes longer than all else together.
        (folder / "torch.py").write_text("raise ImportError")
        path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        start = lambda name="cut": Run(folder / name, user_env | {"PYTHONPATH": path})
        whole = start("whole")
        cut_off_training(folder / "cut", "train_tokenizer", start, events)
        cut_off_encoding(folder / "cut", start, events)
        cut_off_training(folder / "cut", "train_generator", start, events)
        for run in (start(), whole):
            assert run.end() == 0, run.log()[-3000:]
        made.update(whole=folder / "whole", cut=folder / "cut", events=events)
    return made


@pytest.fixture
def whole(runs) -> Path:
    return runs["whole"]


@pytest.fixture
def cut(runs) -> Path:
    return runs["cut"]


@pytest.fixture
def events(runs) -> list[dict]:
    return runs["events"]


def arrays(workdir: Path, part: str) -> dict[str, np.ndarray]:
    """Everything in the last checkpoint of a part, by name."""
    names = ("params", "ema", "opt_state")
    with checkpoint.open_manager(workdir / part, keep=2) as manager:
        items = ocp.args.Composite(**{name: ocp.args.StandardRestore() for name in names})
        restored = manager.restore(manager.latest_step(), args=items)
    leaves = jax.tree_util.tree_leaves_with_path({name: restored[name] for name in names})
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def metrics(workdir: Path) -> dict[tuple, list[dict]]:
    """Logged numbers by stage and step, without measured speeds."""
    found: dict[tuple, list[dict]] = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        entry = {
            name: value for name, value in json.loads(line).items() if not name.endswith(TIMES)
        }
        found.setdefault((entry["stage"], entry["step"]), []).append(entry)
    return found


@pytest.mark.parametrize("stage", PARTS)
def test_a_stopped_training_saves_and_ends_with_status_75(events, stage):
    """SIGTERM or Ctrl-C: where it was is saved, off the interval, and the program says so."""
    [event] = [e for e in events if e["stage"] == stage and e["cut"] == "stopped"]
    assert event["status"] == preemption.STOPPED
    assert event["saved"] >= event["before"] + 3
    assert f"saved at step {event['saved']}" in event["log"]


@pytest.mark.parametrize("stage", PARTS)
def test_a_save_was_cut_off(events, stage):
    """Else the tests below would not show that half a checkpoint is passed over."""
    [event] = [e for e in events if e["stage"] == stage and e["cut"] == "killed while saving"]
    assert event["left"]


def test_encoding_was_cut_off_twice(events):
    """Killed and stopped (status 75) between shards, with shards left to write."""
    [event] = [e for e in events if e["stage"] == "encode"]
    assert event["status"] == preemption.STOPPED
    assert 3 <= event["shards"][0] < event["shards"][1] < FIELDS["encode.shards"]


@pytest.mark.parametrize("part", PARTS.values())
def test_the_arrays_are_the_same_bit_for_bit(whole, cut, part):
    """Parameters, EMA and optimiser state."""
    expected, found = arrays(whole, part), arrays(cut, part)
    assert saved_step(whole, part) == saved_step(cut, part) == STEPS
    assert found.keys() == expected.keys() and len(expected) > 20
    different = [n for n in expected if found[n].tobytes() != expected[n].tobytes()]
    assert not different


@pytest.mark.parametrize("part", PARTS.values())
def test_no_leftover_of_a_cut_off_save_stays(cut, part):
    """The next run removes it."""
    assert not leftovers(cut, part)


def test_every_step_is_logged_once_with_the_same_numbers(whole, cut):
    """What a killed run logged after its last checkpoint is logged anew, not twice."""
    expected = metrics(whole)
    assert len(expected) == 2 * STEPS
    assert metrics(cut) == expected


def test_the_cache_is_the_same_byte_for_byte(whole, cut):
    """Shards and headers."""
    contents = [
        {file.relative_to(workdir): file.read_bytes() for file in workdir.glob("cache/*/[!.]*")}
        for workdir in (whole, cut)
    ]
    assert contents[0] == contents[1]
    shards = [path for path in contents[0] if path.match("train/*.array_record")]
    assert len(shards) == FIELDS["encode.shards"]


def test_the_samples_and_the_summary_are_the_same(whole, cut):
    """All final numbers are there, and equal but for the seconds."""
    summaries = [json.loads((w / "summary.json").read_text()) for w in (whole, cut)]
    assert summaries[0].keys() == summaries[1].keys()
    seconds = {name for name in summaries[0] if "seconds" in name}
    assert len(seconds) == 6
    different = {n for n in summaries[0] if summaries[0][n] != summaries[1][n]}
    # Where the samples lie, and the checkpoint that they were drawn from.
    assert different <= seconds | {"evaluated", "evaluated_generator_checkpoint"}
    images = [np.load(w / "samples.npz")["arr_0"] for w in (whole, cut)]
    np.testing.assert_array_equal(*images)
