"""Tests of bar_jax/runtime/workdir_lock.py: one run at a time in a workdir."""

import errno
import logging
import subprocess
import sys

import pytest

from bar_jax.runtime import workdir_lock
from bar_jax.runtime.errors import InputError

# What another process does: it takes the lock without JAX, says so, and waits.
OTHER = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
file.write('{"job": "pipeline", "host": "node7", "pid": 12, "since": "noon"}')
file.flush()
print("taken", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process in the workdir."""
    command = [sys.executable, "-c", OTHER, str(tmp_path / workdir_lock.FILE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"taken\n"
        yield process
        process.kill()


def test_the_second_run_is_refused_and_told_of_the_first(tmp_path, other):
    told = r"found .* in use by job=pipeline \(process 12 on node7 since noon\), expected one run"
    with pytest.raises(InputError, match=told):
        with workdir_lock.held(str(tmp_path), "sample"):
            pytest.fail("both are in")


def test_a_killed_run_leaves_no_lock_behind(tmp_path, other):
    other.kill()
    other.wait()
    with workdir_lock.held(str(tmp_path), "sample"):
        pass


def test_another_process_is_kept_out_until_the_end(tmp_path):
    command = [sys.executable, "-c", OTHER, str(tmp_path / workdir_lock.FILE)]
    run = lambda: subprocess.run(command, input=b"", capture_output=True)
    with workdir_lock.held(str(tmp_path), "sample"):
        assert b"BlockingIOError" in run().stderr
    assert run().stdout == b"taken\n"


def test_the_file_names_the_run(tmp_path):
    with workdir_lock.held(str(tmp_path), "train_generator"):
        # Another process reads it: to close it in this one would drop the lock.
        told = subprocess.check_output(["cat", tmp_path / workdir_lock.FILE]).decode()
    assert told.startswith('{"job": "train_generator", "host": ')


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(workdir_lock.fcntl, "lockf", refuse)
    with caplog.at_level(logging.WARNING), workdir_lock.held(str(tmp_path), "sample"):
        pass
    assert f"{tmp_path}: not locked ([Errno {errno.ENOLCK}] No locks available)" in caplog.text


def test_a_bucket_has_no_lock(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with workdir_lock.held("gs://bucket/run", "sample"):
        assert not list(tmp_path.iterdir())
