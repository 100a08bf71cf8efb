"""Runs the scripts of launch/ for tests, with stand-ins for clouds and schedulers."""

import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("gcloud", "kubectl", "sbatch", "srun", "scontrol", "docker", "git")
MAIN = ("--", "--config=configs/quickstart.py:tiny", "--workdir=/shared/run")
CLOUD = ("--", "--config=configs/quickstart.py:tiny", "--workdir=/mnt/bucket/run")
TPU = ("--zone=us-west4-a", "--bucket=bucket", "--name=slice")
GKE = ("--zone=us-west4-a", "--project=p", "--bucket=bucket", "--image=docker.io/me/bar:1")


def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Puts commands on PATH that record their arguments; the function lists what was called."""
    record = tmp_path / "record"
    (tmp_path / "bin").mkdir()
    for name in OUTSIDE:
        stand_in(tmp_path / "bin" / name, f'echo {name} "$@" >> {shlex.quote(str(record))}')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return lambda: record.read_text().splitlines() if record.exists() else []


def stand_in(path: Path, script: str) -> Path:
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)
    return path


def launch(script: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    command = ["bash", str(ROOT / f"launch/{script}.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def dry(script: str, *arguments: str) -> list[list[str]]:
    """The commands of a dry run, each as its arguments."""
    before = arguments.index("--") if "--" in arguments else len(arguments)
    done = launch(script, *arguments[:before], "--dry-run", *arguments[before:])
    assert done.returncode == 0, done.stderr
    lexer = shlex.shlex(done.stdout, posix=True, punctuation_chars="\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " ", True, ""
    commands = [[]]
    for word in lexer:
        commands.append([]) if not word.strip("\n") else commands[-1].append(word)
    return [command for command in commands if command]


def remote(command: list[str]) -> str:
    """What a gcloud ssh runs on the workers."""
    (text,) = [word.removeprefix("--command=") for word in command if word.startswith("--command=")]
    return text


def python_that(tmp_path: Path, script: str) -> str:
    """A stand-in for Python that runs `script` in place of bar_jax.main."""
    return str(stand_in(tmp_path / "python", script))
