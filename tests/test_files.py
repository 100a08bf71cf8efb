"""Tests of bar_jax/files.py."""

from pathlib import Path

import pytest

from bar_jax import files
from bar_jax.errors import InputError


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
