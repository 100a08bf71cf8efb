"""Runs the command, or a test's code, in processes of their own: one, or a cluster."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 900  # seconds until a process counts as hung, on a machine that others keep busy too


def environment(devices: int = 1) -> dict[str, str]:
    """That of a process with so many CPU devices, and the tests' compiled programs."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests/no_torch"), str(ROOT)]),
        "XLA_FLAGS": re.sub(r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"]),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def command(
    workdir: Path, config: str, fields: Mapping[str, object], python: Sequence[str] = ()
) -> list[str]:
    """The command on a workdir.

    Args:
      python: arguments of Python in place of `-m bar_jax.main`.
    """
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    main = python or ["-m", "bar_jax.main"]
    return [sys.executable, *main, f"--config={config}", f"--workdir={workdir}", *overrides]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


class Run:
    """A command at work, in one process or in several that form a cluster.

    Args:
      logs: where their logs are written; starts with a name that no other run's logs have.
      devices: CPU devices of each process.
    """

    def __init__(self, command: Sequence[str], logs: Path, processes: int = 1, devices: int = 1):
        cluster = []
        if processes > 1:
            cluster = [f"--coordinator=localhost:{free_port()}", f"--num_processes={processes}"]
        name = f"{logs.name}.{time.monotonic_ns()}"
        self._logs = [logs.with_name(f"{name}.{i}.log") for i in range(processes)]
        # A shell's job in the background ignores Ctrl-C, and so do its processes.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._processes = []
        for i, path in enumerate(self._logs):
            flags = [*cluster, f"--process_id={i}"] if cluster else []
            with path.open("w") as log:
                self._processes.append(
                    subprocess.Popen(
                        [*command, *flags], cwd=ROOT, env=environment(devices), stdout=log,
                        stderr=log,
                    )
                )  # fmt: skip

    def log(self, process: int = 0) -> str:
        """What a process has printed."""
        return self._logs[process].read_text()

    def send(self, sent: signal.Signals, process: int = 0) -> None:
        """Sends a signal to one process."""
        self._processes[process].send_signal(sent)

    def end(self) -> list[int]:
        """Waits for the end; returns the exit statuses. What does not end is killed."""
        deadline = time.monotonic() + TIMEOUT
        try:
            return [p.wait(max(1, deadline - time.monotonic())) for p in self._processes]
        finally:
            for process in self._processes:
                process.kill()
                process.wait()

    def succeed(self, status: int = 0) -> None:
        """Waits for the end, which must be a good one: of all processes with this status."""
        statuses = self.end()
        logs = "\n".join(self.log(i)[-3000:] for i in range(len(statuses)))
        assert set(statuses) == {status}, f"{statuses}\n{logs}"

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Lets it work until a condition holds."""
        start = time.monotonic()
        while not condition():
            ended = [p.poll() is not None for p in self._processes]
            if any(ended) or time.monotonic() > start + TIMEOUT:
                for process in self._processes:
                    process.kill()
                pytest.fail(f"no {what}; ended {ended}, printed:\n{self.log()[-3000:]}")
            time.sleep(0.002)

    def until_step(self, stage: str, step: int) -> None:
        """Lets it work until it has made this step itself."""
        made = lambda: max(map(int, re.findall(rf"{stage} step (\d+)/", self.log())), default=0)
        self.until(lambda: made() >= step, f"step {step} of {stage}")


def two(*command: str, arguments: Sequence[str] = (), **variables: str) -> list[str]:
    """Runs `python COMMAND PORT RANK ARGUMENTS` as ranks 0 and 1; both must end well.

    Args:
      variables: of the environment, beside those of a process with one device.

    Returns:
      What each printed.
    """
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, *command, port, str(rank), *arguments],
            env=environment() | variables,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    statuses = [process.returncode for process in processes]
    assert not any(statuses), f"{statuses}\n" + "\n".join(errors[-2000:] for _, errors in printed)
    return [output for output, _ in printed]
