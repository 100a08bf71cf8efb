"""Starts two processes that form a cluster on this machine."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(
    *command: str, arguments: Sequence[str] = (), timeout: float = 900, **environment: str
) -> list[str]:
    """Runs `python COMMAND PORT RANK ARGUMENTS` as ranks 0 and 1; both must end well.

    Args:
      timeout: seconds until they count as hung.
      environment: variables beside this process's own.

    Returns:
      What each printed.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, *command, str(port), str(rank), *arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    statuses = [process.returncode for process in processes]
    assert not any(statuses), f"{statuses}\n" + "\n".join(errors[-2000:] for _, errors in told)
    return [output for output, _ in told]
