"""Tests of what is installed: setup.py, and the scripts that call it."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted([*ROOT.glob("launch/**/*.sh"), ROOT / ".ci/run"])
SHIPPED = ("bar_jax", "configs", "third_party")


def _run(*command, cwd: Path) -> None:
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of this checkout, as a build leaves build/ and bar_jax.egg-info/ behind."""
    pytest.importorskip("setuptools", minversion="77")
    clone = tmp_path_factory.mktemp("clone")
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, clone)
    for name in SHIPPED:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, clone / name, ignore=ignore)
    # Any depth must be carried, whatever there is today.
    (clone / "configs/a/b").mkdir(parents=True)
    (clone / "configs/a/b/deep.py").write_text("")
    return clone


def _wheel_of(source: Path, folder: Path) -> set[str]:
    """The files of bar_jax in the wheel that pip builds from a clone or an sdist."""
    options = "--quiet --no-deps --no-build-isolation --no-index".split()
    _run("-m", "pip", "wheel", *options, "--wheel-dir", folder, source, cwd=folder)
    (wheel,) = folder.glob("bar_jax-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if name.startswith("bar_jax/")}


def test_wheel_and_sdist_hold_every_file(clone, tmp_path):
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    _run("-c", build, tmp_path, cwd=clone)  # first, so that nothing left by the wheel helps it
    (sdist,) = tmp_path.glob("bar_jax-*.tar.gz")
    (tmp_path / "from_sdist").mkdir()
    (tmp_path / "from_clone").mkdir()
    from_sdist = _wheel_of(sdist, tmp_path / "from_sdist")
    from_clone = _wheel_of(clone, tmp_path / "from_clone")

    modules = {str(path.relative_to(clone)) for path in clone.glob("bar_jax/**/*.py")}
    assert modules <= from_clone, "a folder of bar_jax lacks its __init__.py"
    carried = {
        f"bar_jax/{path.relative_to(clone)}"
        for folder in ("configs", "third_party")
        for path in clone.glob(f"{folder}/**/*")
        if path.suffix in {".py", ".md", ".json"}
    }
    assert {"bar_jax/configs/quickstart.py", "bar_jax/third_party/README.md"} <= carried
    assert carried <= from_clone
    assert from_sdist == from_clone


def test_requirements_have_floors_and_no_ceilings():
    strings = re.findall(r'"([^"\n]*)"', (ROOT / "setup.py").read_text())
    requirements = [text for text in strings if re.match(r"[\w.-]+(\[.*\])?\s*[=<>!~]", text)]
    assert len(requirements) > 20
    for requirement in requirements:
        assert re.fullmatch(r"[\w.-]+(\[[\w,-]+\])?>=[\d.]+", requirement), requirement


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_parses(script):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
