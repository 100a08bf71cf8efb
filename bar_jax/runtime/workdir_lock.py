"""One run at a time in a workdir: a lock that goes with its process, however that ends.

Of POSIX's byte-range locks, which NFS knows too and a crash does not leave behind; the file stays,
and says whose the lock is. Object stores (`gs://`) have none, and nor have some that are mounted.
"""

import contextlib
import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import jax

from bar_jax.runtime import mesh
from bar_jax.runtime.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)
FILE = ".lock"
TAKEN = (errno.EACCES, errno.EAGAIN)


@contextlib.contextmanager
def held(workdir: str, job: str) -> Iterator[None]:
    """Holds a workdir's lock for a block: process 0 does, for all processes of the run.

    Args:
      workdir: a folder that is there.
      job: what the run does, for the message to another one.

    Raises:
      InputError: another run holds it; it is named.
    """
    with mesh.all_or_none():
        file = _take(workdir, job) if jax.process_index() == 0 else None
    try:
        yield
    finally:
        if file is not None:
            file.truncate(0)
            file.close()  # which drops the lock


def _take(workdir: str, job: str) -> TextIO | None:
    """The locked file; None where there are no locks."""
    if fcntl is None or "://" in workdir:
        return None
    # Nothing else in this process may open the file: to close it anywhere drops the lock.
    file = (Path(workdir) / FILE).open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        with file:
            if error.errno in TAKEN:
                expected = "one run at a time: wait until that one ends, or another --workdir"
                raise InputError(
                    "--workdir", f"{workdir} in use by {_told(file)}", expected
                ) from error
        logger.warning(
            "%s: not locked (%s); see to it that no other run writes there", workdir, error
        )
        return None
    file.truncate(0)
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    own = {"job": job, "host": socket.gethostname(), "pid": os.getpid(), "since": now}
    file.write(json.dumps(own))
    file.flush()
    os.fsync(file.fileno())
    return file


def _told(file: TextIO) -> str:
    """Whose a lock is, as its file says."""
    file.seek(0)
    try:
        own = json.loads(file.read())
        return f"job={own['job']} (process {own['pid']} on {own['host']} since {own['since']})"
    except (ValueError, KeyError, TypeError):  # it has only just been taken
        return "another run"
