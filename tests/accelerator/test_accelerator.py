"""Tests of bar_jax/accelerator/: rows that fail, hang or do not fit, and what is kept of them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax import main as bar_jax_main
from bar_jax.accelerator import __main__ as driver
from bar_jax.accelerator import comparison, right, rows, table, work
from bar_jax.accelerator.rows import ROWS, Row
from bar_jax.config import flatten, validation
from tests import running
from tests.launching import ROOT, launch

MACHINE = {
    "platform": "gpu",
    "device": "Some GPU",
    "devices": 1,
    "memory_bytes": 10**10,
    "runtime": "cuda 13000",
    "processors": 2,
    "versions": {"jax": "0.11"},
}
SAMPLING = {"batch_size": 2, "images_per_second": 4.0, "images_per_second_decoded": 2.0}
ROW = Row("some", "configs/quickstart.py", ("sampling",), 30, (4, 2), memory=8, beside="1 image/s")


@pytest.fixture
def process(monkeypatch, tmp_path):
    """Runs an expression in a process of its own: what was found of it."""
    monkeypatch.setattr(work, "IMPORTED", ())
    return lambda text, limit=60: driver.run_process(eval, tmp_path / "log", limit, text)


@pytest.fixture
def ending(monkeypatch, tmp_path):
    """What is told of a row that ends like this."""

    def measured(row=ROW, left=1000.0, **fields):
        given = dict(status=0, seconds=1.0, printed=None, logged={}, error=[]) | fields
        monkeypatch.setattr(driver, "run_process", lambda *_: driver.Ended(**given))
        return driver.measure(row, MACHINE, tmp_path, time.monotonic() + left, False)

    return measured


# --- a process -----------------------------------------------------------------------------------


def test_what_a_process_prints_last_is_read(process):
    told = process("print('noise') or print('{\\n \"a\": 1\\n}') or 0")
    assert (told.status, told.printed) == (0, {"a": 1})


def test_a_process_that_raises_tells_its_error(process):
    told = process("1 / 0")
    assert (told.status, told.printed) == (1, None)
    assert told.error[-1] == "ZeroDivisionError: division by zero"


def test_a_process_that_crashes_does_not_end_the_driver(process):
    assert process("__import__('os').abort()").status == -signal.SIGABRT


def test_a_process_past_its_limit_goes_with_its_own_and_its_parts_are_kept(process, tmp_path):
    parts = "__import__('sys').stderr.write('10:00:00 benchmark: a: {\"b\": 1}\\n')"
    child = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid))"
    start = "(p := __import__('subprocess').Popen(['sleep', '600']))"
    told = process(f"[{parts}, {start}, {child}, p.wait()]", limit=10)
    assert told.status is None and told.logged == {"a": {"b": 1}}
    stat = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    until = time.monotonic() + 30  # what was killed may need a moment to be gone
    while stat.exists() and stat.read_text().split()[2] != "Z":
        assert time.monotonic() < until
        time.sleep(0.05)


# --- a row ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, status, reason",
    [
        (dict(printed={"sampling": SAMPLING}), "ok", ""),
        (dict(status=1, error=["ValueError: no"]), "failed", "status 1"),
        (dict(status=-11), "failed", "signal 11"),
        (dict(status=1, error=["RESOURCE_EXHAUSTED: 9 GB", "at"]), "failed", "out of memory"),
        (dict(status=None, logged={"sampling": SAMPLING}), "timed out", "after 150 s"),
        (dict(left=29), "skipped", "takes about 30 s, 29 s are left"),
        (dict(row=ROW._replace(memory=12)), "skipped", "needs 12 GB or more"),
        (dict(row=ROW._replace(platform="tpu")), "skipped", "is for tpu, and this is gpu"),
    ],
)
def test_how_a_row_ended_is_told(ending, fields, status, reason):
    told = ending(**fields)
    assert told["status"] == status and told["reason"].startswith(reason)
    assert table.in_short(told).startswith("batch 2" if status == "ok" else status)
    if fields.get("logged"):
        assert "2 images/s" in table.in_short(told)


def test_a_row_has_no_more_than_the_minutes_that_are_left(ending, monkeypatch):
    assert ending(status=None, left=60)["reason"] == "after 60 s"


@pytest.mark.parametrize("tiny", [False, True])
def test_every_row_is_a_config_that_is_valid(tiny, tmp_path):
    for row in ROWS:
        if row.config == rows.RIGHT:
            assert set(row.parts) <= set(right.CHECKS)
            continue
        config = bar_jax_main.parse(["main", *rows.arguments(row, str(tmp_path), tiny)])
        validation.validate(config)
        assert config.benchmark.batches == ((2,) if tiny else row.batches)


def test_every_device_has_a_batch_of_that_size():
    assert "--config.benchmark.batches=16,8" in rows.arguments(ROW, "out", tiny=False, devices=4)


def test_names_are_unique_and_all_checks_are_made():
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    made = [name for row in ROWS if row.config == rows.RIGHT for name in row.parts]
    assert sorted(made) == sorted(right.CHECKS)


def test_kinds_leave_out_what_is_only_larger():
    """As they are when tiny the others have the config of one that is there, sampling apart."""

    def tiny(row):
        fields = flatten(bar_jax_main.parse(["main", *rows.arguments(row, "out", tiny=True)]))
        parts = "model.", "train_", "benchmark.parts", "sample.attention", "sample.weights"
        size = "model.generator.patch_size", "benchmark.first_that_fits"
        return {n: v for n, v in fields if n.startswith(parts) and n not in size}

    kept = rows.kinds()
    configs = [tiny(row) for row in kept if row.config != rows.RIGHT and not row.trace]
    left_out = [row for row in ROWS if row not in kept]
    assert left_out and not [row.name for row in left_out if tiny(row) not in configs]


def test_eight_minutes_hold_what_is_worth_most():
    end = [row.name for row in ROWS].index("bar_b_trace")
    assert sum(row.seconds for row in ROWS[: end + 1]) < 8 * 60


# --- what is right -------------------------------------------------------------------------------


def test_errors_are_held_against_their_tolerances():
    assert comparison.judged(a=(1e-6, 1e-5), b=(0.0, 0.0))["ok"]
    assert not comparison.judged(a=(1e-6, 1e-5), b=(1e-4, 1e-5))["ok"]
    assert not comparison.judged(a=(float("nan"), 1.0))["ok"]
    assert comparison.distance({"a": [3.0, 4.0]}, {"a": [3.0, 4.5]}) == pytest.approx(
        0.5 / 29.25**0.5
    )


def test_a_check_that_raises_is_told_and_the_next_is_made(monkeypatch):
    checks = {"bad": lambda setting: 1 / 0, "good": lambda setting: comparison.judged(a=(0.0, 0.0))}
    monkeypatch.setattr(right, "CHECKS", checks)
    told = right.run(("bad", "good"), tiny=True)
    assert (told["bad"]["ok"], told["good"]["ok"]) == (False, True)
    assert told["bad"]["raised"] == "ZeroDivisionError: division by zero"
    row = dict(status="failed", reason="status 1", result=told)
    assert table.in_short(row).endswith("NOT right: bad; right: good")


def test_what_the_second_device_computes_otherwise_is_seen(monkeypatch):
    setting = comparison.Setting(*jax.devices()[:2], {}, tiny=True)
    on, numbers = comparison.on, np.arange(8, dtype=np.float32)
    off = lambda device, *args: on(device, *args) + 1e-2 * (device == setting.other)
    monkeypatch.setattr(comparison, "on", off)
    error = comparison.distance(*comparison.both(setting, jnp.sin, numbers))
    assert error > 1e-3


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, tmp_path):
    """The command on a machine with a GPU; rows end as given, by name."""

    def run(*arguments, platform="gpu", **ends):
        probed = driver.Ended(0, 1.0, MACHINE | {"platform": platform}, {}, [])

        def process(function, log, limit, *args):
            if function is work.probe:
                return probed
            end = ends.get(args[0].name, dict(printed={"sampling": SAMPLING}))
            if isinstance(end, int):
                os.kill(os.getpid(), end)
            return driver.Ended(
                **dict(status=0, seconds=1.0, logged={}, printed=None, error=[]) | end
            )

        monkeypatch.setattr(driver, "run_process", process)
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
        return driver.main(["--out", str(tmp_path / "out"), "--minutes=99", *arguments])

    return run


def kept(tmp_path):
    lines = (tmp_path / "out/results.jsonl").read_text().splitlines()
    return {told["row"]: told["status"] for told in map(json.loads, lines)}


def test_a_failed_row_is_named_and_the_next_begins(command, tmp_path, capsys):
    assert command("--only=right,bar_b,bar_l", bar_b=dict(status=1, error=["no kernel"])) == 1
    assert kept(tmp_path) == {"right": "ok", "bar_b": "failed", "bar_l": "ok"}
    assert "bar_b: failed: status 1; no kernel" in capsys.readouterr().out
    assert "| bar_b | failed: status 1; no kernel |" in (tmp_path / "out/results.md").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_keeps_what_it_has(command, tmp_path, number):
    handler = signal.getsignal(number)
    assert command(**{"bar_b_float32": int(number)}) == 128 + number
    assert kept(tmp_path) == dict.fromkeys(("right", "right_low", "bar_b"), "ok")
    assert "| bar_b |" in (tmp_path / "out/results.md").read_text()
    assert signal.getsignal(number) is handler


def test_again_it_adds_and_a_row_measured_again_counts_once(command, tmp_path):
    assert command("--only=bar_b", bar_b=dict(status=1)) == 1
    with open(tmp_path / "out/results.jsonl", "a") as file:
        file.write('{"row": "bar_l", "sta')  # cut off
        file.write("\n")
    assert command("--only=bar_b") == 0
    assert command("--only=bar_l") == 0
    text = (tmp_path / "out/results.md").read_text()
    assert text.count("| bar_b |") == text.count("| bar_l |") == 1 and "failed" not in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--only=bar_b,bar_x",), "error: --only: found 'bar_x', expected rows: right right_low"),
        (("--minutes=-1",), "error: --minutes: found '-1'"),
        (("--minutes=soon",), "error: --minutes: found 'soon'"),
        (("--out=/proc/no",), "error: --out=/proc/no: found a folder that cannot be written to"),
    ],
)
def test_a_mistake_is_told_in_one_line(command, capsys, arguments, message):
    assert command(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)


def test_without_an_accelerator_it_says_so(command, capsys, tmp_path):
    assert command(platform="cpu") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no accelerator") and not kept(tmp_path)


def test_missing_packages_are_named(command, capsys, monkeypatch):
    monkeypatch.setattr(driver, "PACKAGES", ("jax", "no_such_package", "no_such.module"))
    assert command() == 2
    assert "no no_such_package, no_such.module" in capsys.readouterr().err


# --- all of it -----------------------------------------------------------------------------------


OF_PARTS = {row.parts: row for row in sorted(ROWS, key=lambda row: row.trace)}.values()


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param([row for row in ROWS if row.name == "xar_b"], id="a sampler"),
        pytest.param(
            [row for row in ROWS if row in OF_PARTS], id="parts", marks=pytest.mark.exhaustive
        ),
    ],
)
def test_tiny(chosen, tmp_path):
    """A row of each part works, on the CPU, where nothing is measured; with a trace if one has.

    What other rows do beside that, tests/jobs and tests/test_pipeline.py do too.
    """
    cache = jax.config.jax_compilation_cache_dir
    environment = running.environment() | {"JAX_COMPILATION_CACHE_DIR": f"{cache}/accelerator"}
    only = f"--only={','.join(row.name for row in chosen)}"
    command = ["bash", str(ROOT / "launch/accelerator.sh"), "--tiny", "--minutes=15", only]
    environment |= {"PYTHON": sys.executable}
    done = subprocess.run(
        [*command, f"--out={tmp_path}"], env=environment, capture_output=True, text=True
    )
    results = table.read(tmp_path / "results.jsonl")
    wrong = [table.in_short(found) for found in results if found["status"] != "ok"]
    assert done.returncode == 0 and not wrong, (wrong, done.stderr)
    assert [found["row"] for found in results] == [row.name for row in chosen]
    text = (tmp_path / "results.md").read_text()
    assert "nothing here is a measurement" in text and "NOT right" not in text
    for row in chosen:
        assert f"## {row.name}: " in text or not row.trace


def test_the_script_refuses_what_is_wrong(tmp_path):
    for arguments, message in (
        (["--minutes=0"], "--minutes is '0'"),
        (["--weels=x"], "--weels is no flag"),
        (["--wheels", str(tmp_path), "--out", str(tmp_path / "o")], "with *.whl in it"),
    ):
        done = launch("accelerator", *arguments, env=os.environ | {"PYTHON": sys.executable})
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert message in line
