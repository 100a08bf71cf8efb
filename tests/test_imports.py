"""Imports run downwards, in no circle, and a job reads alone: as the source says."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the top down. Rooms of one level may import each other; `config` and `runtime` are leaves,
# which all may import.
LEVELS = (
    ("main", "jobs", "pipeline", "accelerator", "__init__"),
    ("sampling", "training", "metrics", "visualize", "data", "pretrained", "inspection"),
    ("generators", "tokenizers"),
    ("heads", "bases", "losses"),
    ("nn",),
)
LEAVES = ("config", "runtime")


def module_of(path):
    """`bar_jax.jobs.sample` of its file; a package's name of its `__init__.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted((ROOT / "bar_jax").rglob("*.py"))}


def imported(path, lazily=True):
    """Modules of the package that a file names in its imports; without those inside functions."""
    tree, found = ast.parse(path.read_text()), set()
    for node in ast.walk(tree) if lazily else tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bar_jax"):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
    return found - {module_of(path), "bar_jax"}


def room(module):
    return (module.split(".") + ["__init__"])[1]


def level(module):
    return next(i for i, rooms in enumerate(LEVELS) if room(module) in rooms)


@pytest.mark.parametrize("name", sorted({room(module) for module in MODULES} - set(LEAVES)))
def test_a_room_imports_no_room_above(name):
    upwards = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        if room(module) == name
        for other in imported(path)
        if room(other) not in LEAVES and level(other) < level(module)
    ]
    assert upwards == []


def test_no_job_imports_another_but_the_pipeline():
    jobs = [name for name in MODULES if room(name) == "jobs" and name.count(".") == 2]
    among = {job: sorted(imported(MODULES[job]) & set(jobs)) for job in jobs}
    del among["bar_jax.jobs.pipeline"]
    assert {job: others for job, others in among.items() if others} == {}


def test_the_pipeline_of_python_imports_no_job():
    assert [name for name in imported(MODULES["bar_jax.pipeline"]) if room(name) == "jobs"] == []


def test_no_circle():
    """Of imports at the head of files, by taking away modules that nothing imports any more."""
    left = {name: imported(path, lazily=False) for name, path in MODULES.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}
