"""Finds the files that come with bar_jax, in a clone or installed, and writes files whole."""

import contextlib
import difflib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from bar_jax.runtime.errors import InputError, SaveError

_PACKAGE = Path(__file__).resolve().parents[1]

# Where configs/ and third_party/ lie: next to the package in a clone; setup.py puts them inside
# the package elsewhere. The parent of an installed package is site-packages, shared with others.
_HOME = _PACKAGE.parent if (_PACKAGE.parent / "setup.py").is_file() else _PACKAGE


def expand(path: str | os.PathLike[str]) -> str:
    """A path that a user gives, in a config or from Python, with `~` and `~user` expanded."""
    return os.path.expanduser(os.fspath(path))


def find(path: str | os.PathLike[str]) -> Path:
    """Finds a file or folder that a user names, such as `configs/quickstart.py`.

    A path that exists is taken as it is. Otherwise it is looked for in the clone that bar_jax
    runs from, or in the installed package, so that `configs/...` and `third_party/...` work from
    any working directory.

    Args:
      path: what the user wrote; `~` is expanded.

    Returns:
      the path as given if it exists, otherwise the absolute path of what was found.

    Raises:
      InputError: there is no such file; the message lists the configs with similar names.
    """
    given = expand(path)
    # os.path.exists takes any string; Path.exists raises on some (a name that is too long).
    for candidate in (given, os.path.join(_HOME, given)):
        if given and os.path.exists(candidate):
            return Path(candidate)
    found = "no such file"
    if not os.path.isabs(given):
        found += " in " + " or ".join(dict.fromkeys([str(Path.cwd()), str(_HOME)]))
    expected = "an existing file"
    if close := _close_configs(given):
        expected += f"; did you mean {' or '.join(close)}?"
    raise InputError(repr(str(path)), found, expected)


def shipped(path: str) -> Path:
    """What comes with bar_jax under this name, whatever lies in the working directory."""
    return _HOME / path


def digest(path: str | os.PathLike[str]) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _close_configs(path: str) -> list[str]:
    """Configs that `path` may have meant, best first: by whole path, then by name alone."""
    known = {
        file.relative_to(home).as_posix()
        for home in (Path.cwd(), _HOME)
        for file in home.glob("configs/**/*.py")
    }
    stems: dict[str, list[str]] = {}
    for config in sorted(known):
        stems.setdefault(Path(config).stem, []).append(config)
    by_path = difflib.get_close_matches(path, sorted(known), n=3, cutoff=0.8)
    by_stem = difflib.get_close_matches(Path(path).stem, stems, n=3, cutoff=0.7)
    same_name = [config for stem in by_stem for config in stems[stem]]
    return list(dict.fromkeys(by_path + same_name))[:3]


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file so that it is there whole or not at all, whatever is killed when."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its name once it is written and on the disk.

    The file has the permissions of any new one there, whoever writes it: some libraries make files
    that nobody else may read.
    """
    path = Path(path)
    # A name of its own: processes, of other machines too, may write the same file at once.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with naming(path):
            # Made here, by the umask and the folder's rules. To ask for the umask is to set it, for
            # all threads: it is read off a new file.
            with temporary.open("xb") as file:
                mode = os.fstat(file.fileno()).st_mode
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            _set_mode(temporary, mode)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def open_folders(folder: str | os.PathLike[str]) -> None:
    """Gives a folder and those in it the permissions of any new one there, whoever made them."""
    probe = Path(folder) / f".probe-{secrets.token_hex(4)}"
    probe.mkdir()
    mode = probe.stat().st_mode
    probe.rmdir()
    for inside, _, _ in os.walk(folder):
        _set_mode(inside, mode)


def _set_mode(path: str | os.PathLike[str], mode: int) -> None:
    """Sets permissions, unless they are those: a file system may know none to be set."""
    if os.stat(path).st_mode != mode:
        os.chmod(path, stat.S_IMODE(mode))


@contextlib.contextmanager
def telling_full_disk(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Reports an OSError of a full disk, or of a used-up quota, as a SaveError.

    Args:
      folder: named where the error names no file.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SaveError(f"{error.filename or folder}: {error.strerror}") from error


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Adds a path to an OSError that names none, as the one of a write to a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
