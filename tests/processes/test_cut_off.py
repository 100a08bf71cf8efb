"""Two processes that are stopped, killed and started again end as if nothing had been.

BAR_JAX_KILLS=20 kills them that often, at moments drawn from BAR_JAX_KILLS_SEED.
"""

import os
import random
import shutil
import signal
import time

import numpy as np
import pytest

from bar_jax.runtime import preemption
from bar_jax.runtime.distributed import HEARTBEAT

pytestmark = pytest.mark.slow
STEPS = 20
KILLS = int(os.environ.get("BAR_JAX_KILLS", "1"))
SEED = int(os.environ.get("BAR_JAX_KILLS_SEED", "0"))


def saved(workdir, part):
    """The steps of complete checkpoints."""
    return sorted(int(p.name) for p in (workdir / part).glob("*") if p.name.isdigit())


def unfinished(workdir, part):
    return list((workdir / part).glob("*.orbax-checkpoint-tmp"))


def assert_same_training(found, expected, part, arrays, logged):
    """Bit for bit: parameters, EMA, optimiser state and all that was logged."""
    assert saved(found, part)[-1] == STEPS
    a, b = arrays(found, part), arrays(expected, part)
    assert a.keys() == b.keys() and len(a) > 20
    assert not [name for name in a if a[name].tobytes() != b[name].tobytes()]
    stage = f"train_{part}"
    steps = [{k: v for k, v in logged(w).items() if k[0] == stage} for w in (found, expected)]
    assert len(steps[1]) == STEPS and steps[0] == steps[1]


@pytest.mark.exhaustive
def test_sigterm_on_one_of_two_stops_both(folder, two, start, arrays, logged):
    """Both save the same step, end with status 75, and go on to the same end."""
    run = start("stopped", job="train_tokenizer")
    run.until_step("train_tokenizer", 2)
    run.send(signal.SIGTERM, 1)
    run.succeed(preemption.STOPPED)
    last = saved(folder / "stopped", "tokenizer")[-1]
    told = f"told to stop; train_tokenizer: saved at step {last}."
    assert 2 < last < STEPS and [told in run.log(i) for i in range(2)] == [True, True]
    start("stopped", job="train_tokenizer").succeed()
    assert_same_training(folder / "stopped", two, "tokenizer", arrays, logged)


@pytest.mark.exhaustive
def test_ctrl_c_in_one_stops_both_while_they_sample(folder, two, start):
    """Which is no training: they agree on a batch, and go on after it."""
    for part in ("tokenizer", "generator"):
        shutil.copytree(two / part, folder / "sampling" / part)
    many = {"sample.images_per_class": 160}
    run = start("sampling", job="sample", **many)
    kept = lambda: list((folder / "sampling").glob("samples.partial-*/count.json"))
    run.until(kept, "first samples")
    run.send(signal.SIGINT, 0)
    run.succeed(preemption.STOPPED)
    assert all("told to stop; sample: " in run.log(i) for i in range(2))
    start("sampling", job="sample", **many).succeed()
    drawn, expected = (np.load(w / "samples.npz")["arr_0"] for w in (folder / "sampling", two))
    assert len(drawn) == 1600
    np.testing.assert_array_equal(drawn[: len(expected)], expected)


@pytest.mark.exhaustive
def test_kill(folder, two, start, arrays, logged):
    """kill -9 of either process, first while a checkpoint is written, then at random moments.

    The first time the other one gives up by itself, with a status that is not 0, so that a script
    starts both again. The other times it is killed a little later.
    """
    workdir, draw = folder / "killed", random.Random(SEED)
    shutil.copytree(two / "tokenizer", workdir / "tokenizer")
    shutil.copytree(two / "cache", workdir / "cache")
    before = []
    for kill in range(KILLS):
        run = start("killed", job="train_generator", heartbeat=30 if kill == 0 else HEARTBEAT)
        first = draw.randrange(2)
        if kill == 0:
            run.until(lambda: unfinished(workdir, "generator"), "save")
            run.send(signal.SIGKILL, first)
            statuses, left = run.end(), unfinished(workdir, "generator")
            assert left and statuses[1 - first] not in (0, -signal.SIGKILL)
        else:
            last = max(before, default=0)
            run.until_step("train_generator", draw.randint(last + 1, STEPS - 1))
            time.sleep(draw.uniform(0, 0.3))
            run.send(signal.SIGKILL, first)
            time.sleep(draw.uniform(0, 0.3))
            run.send(signal.SIGKILL, 1 - first)
            run.end()
        after = saved(workdir, "generator")
        print(f"kill {kill}: process {first} first, checkpoints {before} -> {after}")
        assert set(before) <= set(after)  # nothing that was saved is lost
        before = after
    start("killed", job="train_generator").succeed()
    assert not unfinished(workdir, "generator")
    assert_same_training(workdir, two, "generator", arrays, logged)


def test_an_error_of_one_process_ends_both(folder, start):
    """A workdir that process 0 cannot write to: both are told, and none waits for ever."""
    (folder / "file").write_text("")
    run = start("file", job="train_tokenizer")
    assert run.end() == [2, 2]
    assert "error: --workdir: found" in run.log(0)
    assert "error: another process: found an error of process 0" in run.log(1)
