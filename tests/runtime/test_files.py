"""Tests of bar_jax/runtime/files.py; that no job writes around it is tested in test_pipeline.py."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bar_jax.runtime import files
from bar_jax.runtime.errors import InputError

A = np.zeros(1, np.float32)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A stand-in for the clone, with a working directory elsewhere."""
    for name in ("configs/quickstart.py", "configs/masked_bit/bar_b.py", "third_party/m.json"):
        (tmp_path / "home" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "home" / name).write_text(name)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(files, "_HOME", tmp_path / "home")
    return tmp_path / "home"


@pytest.mark.parametrize("name", ["configs/masked_bit/bar_b.py", "third_party/m.json"])
def test_found_from_any_working_directory(home, name):
    assert files.find(name) == home / name
    assert files.find(Path(name)) == home / name


def test_a_path_that_exists_is_taken_as_it_is(home):
    Path("configs").mkdir()
    Path("configs/quickstart.py").write_text("mine")
    assert files.find("configs/quickstart.py").read_text() == "mine"
    assert files.find(home / "configs/quickstart.py") == home / "configs/quickstart.py"


def test_tilde_is_expanded(home, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    assert files.find("~/third_party/m.json") == home / "third_party/m.json"


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("configs/quickstat.py", "configs/quickstart.py"),
        ("configs/bar_b.py", "configs/masked_bit/bar_b.py"),
        ("bar_b", "configs/masked_bit/bar_b.py"),
    ],
)
def test_missing_file_names_close_configs(home, wrong, meant):
    with pytest.raises(InputError) as error:
        files.find(wrong)
    assert wrong in str(error.value)
    assert f"did you mean {meant}" in str(error.value)


@pytest.mark.parametrize("wrong", ["", "no/such/thing", "x" * 5000, "nul\0byte"])
def test_missing_file_with_nothing_close(home, wrong):
    with pytest.raises(InputError, match="an existing file$"):
        files.find(wrong)


def test_this_checkout():
    assert files.find("third_party/README.md").is_file()


def test_what_is_shipped_is_not_taken_from_the_working_directory(home):
    Path("third_party").mkdir()
    assert files.shipped("third_party") == home / "third_party"


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with files.replacing(path) as temporary:
        temporary.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_left_of_a_write_that_fails(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(RuntimeError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(params=[0o022, 0o002, 0o077], ids=oct)
def umask(request):
    """A umask for the test."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("write", [lambda p: p.write_bytes(b""), lambda p: save_file({"a": A}, p)])
def test_a_file_has_the_permissions_of_any_new_one(tmp_path, umask, write):
    """The package of safetensors makes files that nobody else may read."""
    with files.replacing(tmp_path / "file") as temporary:
        write(temporary)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def test_folders_that_others_made_have_the_permissions_of_any_new_ones(tmp_path, umask):
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    for folder in ("outer", "outer/inner"):
        (tmp_path / folder).chmod(0o700)
    files.open_folders(tmp_path / "outer")
    for folder in ("outer", "outer/inner"):
        assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == 0o777 & ~umask
    assert [p.name for p in (tmp_path / "outer").iterdir()] == ["inner"]
