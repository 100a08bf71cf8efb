"""Measures this machine, a row after another: `python -m bar_jax.accelerator`.

launch/accelerator.sh, which calls this, describes the flags.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import math
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from bar_jax.accelerator import rows as rows_lib
from bar_jax.accelerator import table, work
from bar_jax.accelerator.rows import ROWS, Row
from bar_jax.runtime.errors import InputError

# By the names that they are imported by; what is not here only figures and other sources need.
PACKAGES = (
    *(
        "jax",
        "flax",
        "optax",
        "orbax.checkpoint",
        "chex",
        "einops",
        "ml_collections",
        "clu",
        "absl",
    ),
    *("numpy", "grain", "array_record", "scipy", "PIL", "safetensors", "tensorboardX", "tqdm"),
)
OLDEST_JAX = (0, 10)
PROBE_SECONDS = 180  # a fresh machine imports slowly, and its driver starts slowly
TINY_SECONDS = 3  # of a row


class Ended(NamedTuple):
    """How a process ended.

    Attributes:
      status: its exit status; None if it was ended because its time was over.
      seconds: that it ran.
      printed: the JSON that it printed at its end, or None.
      logged: the parts that it logged before, by name.
      error: the last lines of what it wrote to stderr.
    """

    status: int | None
    seconds: float
    printed: dict | None
    logged: dict[str, object]
    error: list[str]


class Stopped(Exception):
    """The command was asked to stop, by this signal."""


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status."""
    try:
        given = _parse(argv)
        chosen = _chosen(given.only, given.tiny)
        end = time.monotonic() + 60 * _minutes(given.minutes)
        out = _folder(given.out)
        _check_packages()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(out / "compiled"))
    with _stopping():
        machine: dict = {}
        try:
            probed = run_process(work.probe, out / "logs/machine", PROBE_SECONDS)
            if probed.status != 0:
                last = probed.error[-1] if probed.error else f"status {probed.status}"
                print(f"error: {sys.executable} cannot begin: {last}", file=sys.stderr)
                return 2
            machine = probed.printed
            if machine["platform"] == "cpu" and not given.tiny:
                print("error: no accelerator: JAX finds the CPU alone (--tiny)", file=sys.stderr)
                return 2
            print(_titled(machine), flush=True)
            for row in chosen:
                found = measure(row, machine, out, end, given.tiny)
                with open(out / "results.jsonl", "a") as file:
                    file.write(json.dumps(found) + "\n")
                print(f"{row.name}: {table.in_short(found)}", flush=True)
        except Stopped as stopped:
            print(f"stopped; what was measured is in {out}", file=sys.stderr)
            return 128 + stopped.args[0]
        finally:
            results = table.read(out / "results.jsonl")
            if machine:
                (out / "results.md").write_text(table.markdown(machine, results))
    print(f"results are in {out}/results.md and results.jsonl")
    names = {row.name for row in chosen}
    failed = [found["row"] for found in results if found["status"] == "failed"]
    return int(bool(names & set(failed)))


def measure(row: Row, machine: dict, out: Path, end: float, tiny: bool) -> dict[str, object]:
    """Runs a row in a process of its own, if there is time and memory for it.

    Args:
      machine: what `work.probe` printed.
      end: when the minutes are over, of `time.monotonic`.

    Returns:
      The line of results.jsonl: `status` is ok | failed | timed out | skipped, with a `reason`.
    """
    arguments = rows_lib.arguments(row, str(out), tiny, machine["devices"])
    command = ["python", "-m", "bar_jax.main", *arguments]
    line = {
        "row": row.name,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **{name: machine[name] for name in ("platform", "device", "devices", "versions")},
        "tiny": tiny,
        "command": " ".join(command) if row.config != rows_lib.RIGHT else "",
        "beside": "" if tiny else row.beside,
        "seconds": 0.0,
    }
    left, memory = end - time.monotonic(), machine["memory_bytes"] / 1e9
    needed = TINY_SECONDS if tiny else row.seconds
    if row.platform and machine["platform"] != row.platform:
        reason = f"is for {row.platform}, and this is {machine['platform']}"
        return line | {"status": "skipped", "reason": reason}
    if memory and memory < row.memory and not tiny:
        reason = f"needs {row.memory:g} GB or more of a device, JAX may use {memory:.1f}"
        return line | {"status": "skipped", "reason": reason}
    if left < needed:
        reason = f"takes about {needed} s, {max(0, round(left))} s are left"
        return line | {"status": "skipped", "reason": reason}
    limit = left if tiny else min(left, 60 + 3 * row.seconds)
    ended = run_process(
        work.row, out / f"logs/{row.name}", limit, row, arguments, out / "images", tiny
    )
    line |= {
        "seconds": round(ended.seconds, 1),
        "result": ended.printed if ended.printed is not None else ended.logged,
    }
    if ended.status == 0:
        return line | {"status": "ok", "reason": ""}
    if ended.status is None:
        return line | {"status": "timed out", "reason": f"after {round(limit)} s"}
    memory = any(re.search("RESOURCE_EXHAUSTED|OutOfMemory", text) for text in ended.error)
    how = f"status {ended.status}" if ended.status > 0 else f"signal {-ended.status}"
    reason = "out of memory" if memory else how
    return line | {"status": "failed", "reason": reason, "error": ended.error}


def run_process(function: Callable[..., int], log: Path, limit: float, *args) -> Ended:
    """Runs a function of `work` in a process of its own, at most `limit` seconds.

    Args:
      log: path of its output, without the ending.
    """
    context, began = multiprocessing.get_context("forkserver"), time.monotonic()
    context.set_forkserver_preload(list(work.IMPORTED))
    process = context.Process(target=work.begin, args=(function, str(log), *args))
    try:
        process.start()
        process.join(limit)
        timed_out = process.is_alive()
    finally:
        if process.pid:
            _kill(process)
    out, err = (_text(log.with_name(f"{log.name}.{ending}")) for ending in ("out", "err"))
    lines = [line.rstrip()[:500] for line in err.splitlines() if line.strip()]
    status = None if timed_out else process.exitcode
    return Ended(status, time.monotonic() - began, _printed(out), _logged(err), lines[-8:])


def _kill(process: multiprocessing.Process) -> None:
    """Ends a process and all that it started, at once."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():  # not yet the leader of a group
        process.kill()
    process.join()


def _text(file: Path) -> str:
    return file.read_text(errors="replace") if file.exists() else ""


def _printed(text: str) -> dict | None:
    """The JSON object that a job prints at its end, after whatever else was printed."""
    start = text.rfind("\n{\n") + 1
    with contextlib.suppress(json.JSONDecodeError):
        found = json.loads(text[start:])
        return found if isinstance(found, dict) else None
    return None


def _logged(text: str) -> dict[str, object]:
    """What `job=benchmark` and the checks logged of each part, the last of several."""
    found = {}
    for name, numbers in re.findall(r"benchmark: (\w+): (\{.*\})$", text, re.MULTILINE):
        with contextlib.suppress(json.JSONDecodeError):
            found[name] = json.loads(numbers)
    return found


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """SIGTERM and SIGINT raise `Stopped` inside."""

    def stop(number, frame):
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _titled(machine: dict) -> str:
    memory = machine["memory_bytes"]
    has = f", {memory / 1e9:.1f} GB each for JAX" if memory else ""
    return f"{machine['devices']} x {machine['device']}{has}, jax {machine['versions']['jax']}"


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("bar_jax.accelerator", allow_abbrev=False)
    parser.add_argument("--minutes", default="8")
    parser.add_argument("--only", default="")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", default="")
    return parser.parse_args(argv)


def _chosen(only: str, tiny: bool) -> list[Row]:
    """The rows that `--only` names, in order of worth; if it names none, all, or each kind."""
    names, known = [name for name in only.split(",") if name], [row.name for row in ROWS]
    for name in names:
        if name not in known:
            raise InputError("--only", repr(name), f"rows: {' '.join(known)}")
    if names:
        return [row for row in ROWS if row.name in names]
    return rows_lib.kinds() if tiny else list(ROWS)


def _minutes(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise InputError("--minutes", repr(text), "a positive number")


def _check_packages() -> None:
    """Looks for the packages, without importing them.

    Raises:
      InputError: those that are missing, or a JAX that is too old.
    """

    def is_there(name):
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.util.find_spec(name) is not None
        return False

    missing = [name for name in PACKAGES if not is_there(name)]
    if missing:
        expected = "all that bar_jax needs (--wheels=DIR adds them)"
        raise InputError(sys.executable, f"no {', '.join(missing)}", expected)
    version = importlib.metadata.version("jax")
    if tuple(map(int, version.split(".")[:2])) < OLDEST_JAX:
        raise InputError(sys.executable, f"jax {version}", "0.10 or newer")


def _folder(text: str) -> Path:
    """The folder for all that is written, made and tried."""
    out = Path(text or f"runs/accelerator-{datetime.datetime.now():%Y%m%d-%H%M%S}").absolute()
    try:
        (out / "logs").mkdir(parents=True, exist_ok=True)
        (out / "results.jsonl").open("a").close()
    except OSError as error:
        found = f"a folder that cannot be written to ({error.strerror})"
        raise InputError(f"--out={out}", found, "one that can") from error
    return out


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
