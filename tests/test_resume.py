"""A run that is cut off, again and again, ends as one that was not: bit for bit, on CPU.

Real processes, `python -m bar_jax.main`, and real signals. One workdir is made in one go. In
another, the same command is stopped (SIGTERM) and killed (SIGKILL) and started again each time,
until it is finished: by default the tokenizer is stopped, the encoding killed, and the generator
killed while it saves; with --all each long job is stopped and killed, and both trainings once more
at random, or BAR_JAX_KILLS times.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from bar_jax.runtime import preemption
from bar_jax.training import checkpoint
from tests.running import Run, command

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("BAR_JAX_KILLS", "1"))  # with --all, at random, in each training
SEED = int(os.environ.get("BAR_JAX_KILLS_SEED", "0"))  # of those moments
STEPS = 60 + 60 * KILLS
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


def saved_step(workdir: Path, part: str) -> int:
    """The last complete checkpoint's step; 0 if there is none."""
    return max((int(p.name) for p in (workdir / part).glob("*") if p.name.isdigit()), default=0)


def leftovers(workdir: Path, part: str) -> list[str]:
    return [path.name for path in (workdir / part).glob("*.orbax-checkpoint-tmp")]


def stop_training(workdir: Path, stage: str, start: Callable[[], Run], events: list) -> None:
    """Stops it three steps on."""
    run, before = start(), saved_step(workdir, PARTS[stage])
    run.until_step(stage, before + 3)
    run.send(STOPS[stage])
    [status] = run.end()
    events.append({"stage": stage, "cut": "stopped", "status": status, "log": run.log()}
                  | {"before": before, "saved": saved_step(workdir, PARTS[stage])})  # fmt: skip


def kill_while_saving(workdir: Path, stage: str, start: Callable[[], Run], events: list) -> None:
    part = PARTS[stage]
    for _ in range(4):  # the kill may come just too late
        run, before = start(), saved_step(workdir, part)
        run.until_step(stage, before + 1)
        run.until(lambda: not leftovers(workdir, part), "removal of an earlier run's leftover")
        run.until(lambda: leftovers(workdir, part), "save")
        run.send(signal.SIGKILL)
        run.end()
        if left := leftovers(workdir, part):
            break
    events.append({"stage": stage, "cut": "killed while saving", "left": left})


def kill_at_random(workdir: Path, stage: str, start: Callable[[], Run]) -> None:
    part, draw = PARTS[stage], random.Random(f"{SEED} {stage}")
    for _ in range(KILLS):
        run, before = start(), saved_step(workdir, part)
        step, pause = draw.randint(before + 1, before + 25), draw.uniform(0, 0.1)
        if step <= STEPS - 20:
            run.until_step(stage, step)
            time.sleep(pause)
        run.send(signal.SIGKILL)
        run.end()
        after = saved_step(workdir, part)
        print(f"{stage}: from {before}, killed {pause:.3f} s after step {step}, saved {after}")


def cut_off_encoding(workdir: Path, start: Callable[[], Run], events: list, stop: bool) -> None:
    """Kills it, and may stop it, each between two shards of the training images."""
    shards = lambda: len(list(workdir.glob("cache/train/*.array_record")))
    for cut in (signal.SIGKILL, signal.SIGTERM)[: 1 + stop]:
        run, before = start(), shards()
        run.until(lambda: shards() >= before + 2, "two more shards")  # noqa: B023
        run.send(cut)
        [status] = run.end()
        events.append({"stage": "encode", "cut": cut, "status": status}
                      | {"before": before, "shards": shards()})  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory, request) -> dict:
    """Workdirs `whole`, made in one go, and `cut`, finished in the end; how that was cut off."""
    folder, events, every = tmp_path_factory.mktemp("resume"), [], request.config.option.all
    config, cut = "configs/quickstart.py:tiny", folder / "cut"
    start = lambda name="cut": Run(command(folder / name, config, FIELDS), folder / name)
    whole = start("whole")
    stop_training(cut, "train_tokenizer", start, events)
    if every:
        kill_while_saving(cut, "train_tokenizer", start, events)
        kill_at_random(cut, "train_tokenizer", start)
    cut_off_encoding(cut, start, events, stop=every)
    if every:
        stop_training(cut, "train_generator", start, events)
        kill_at_random(cut, "train_generator", start)
    kill_while_saving(cut, "train_generator", start, events)
    for run in (start(), whole):
        run.succeed()
    return {"whole": folder / "whole", "cut": cut, "events": events}


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


@pytest.mark.parametrize(
    "stage",
    ["train_tokenizer", pytest.param("train_generator", marks=pytest.mark.exhaustive)],
)
def test_a_stopped_training_saves_and_ends_with_status_75(events, stage):
    """SIGTERM or Ctrl-C: where it was is saved, off the interval, and the program says so."""
    [event] = [e for e in events if e["stage"] == stage and e["cut"] == "stopped"]
    assert event["status"] == preemption.STOPPED
    assert event["saved"] >= event["before"] + 3
    assert f"saved at step {event['saved']}" in event["log"]


@pytest.mark.parametrize(
    "stage",
    [pytest.param("train_tokenizer", marks=pytest.mark.exhaustive), "train_generator"],
)
def test_a_save_was_cut_off(events, stage):
    """Else the tests below would not show that half a checkpoint is passed over."""
    [event] = [e for e in events if e["stage"] == stage and e["cut"] == "killed while saving"]
    assert event["left"]


def test_encoding_was_cut_off(events):
    """Between shards, with shards left to write; if it was stopped, with status 75."""
    for event in (e for e in events if e["stage"] == "encode"):
        assert event["status"] == (
            preemption.STOPPED if event["cut"] == signal.SIGTERM else -signal.SIGKILL
        )
        assert event["before"] < event["shards"] < FIELDS["encode.shards"]


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
