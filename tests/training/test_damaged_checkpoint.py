"""Checkpoints whose files changed after they were saved, and saves that fail."""

import json
import resource
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime.errors import InputError
from bar_jax.training import checkpoint
from bar_jax.training.step import fresh_state, init_state


def fresh():
    """A state at step 0 on one device, and its shapes."""

    def init(key):
        params = {"kernel": jax.random.normal(key, (32, 1024)), "bias": jnp.arange(16.0)}
        return fresh_state(params, optax.sgd(0.1, 0.9), keep_ema=True)

    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    make, shapes = init_state(init, jax.random.key(0), mesh)
    return make(), shapes


def at(state, step):
    """The state with all numbers moved by a step."""
    moved = jax.tree.map(lambda x: x + step, state)
    return moved.replace(step=jnp.array(step))


def save(folder, *steps):
    state = fresh()[0]
    with checkpoint.closing(checkpoint.open_manager(folder, keep=3)) as manager:
        for step in steps:
            checkpoint.save(manager, at(state, step), {"seed": 5}, {"score": float(step)})


def restore(folder, on_damaged="refuse"):
    with checkpoint.closing(checkpoint.open_manager(folder, keep=3)) as manager:
        return checkpoint.restore_state(manager, fresh()[1], on_damaged)


def restore_params(folder, on_damaged="refuse"):
    return checkpoint.restore_params(folder, fresh()[1].params, on_damaged)


def steps(folder):
    return sorted(path.name for path in folder.iterdir())


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps 1 and 2; not to be changed."""
    folder = tmp_path_factory.mktemp("saved")
    save(folder, 1, 2)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


def flip(file: Path):
    """One bit, in the middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def cut(file: Path):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def largest(folder: Path) -> Path:
    """The file with an item's numbers."""
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


DAMAGE = {
    "a bit of the parameters": lambda step: flip(largest(step / "params")),
    "a bit of the EMA": lambda step: flip(largest(step / "ema")),
    "a bit of the optimiser's state": lambda step: flip(largest(step / "opt_state")),
    "a bit of the metadata": lambda step: flip(step / "meta/metadata"),
    "parameters cut off": lambda step: cut(largest(step / "params")),
    "metadata cut off": lambda step: cut(step / "meta/metadata"),
    "no parameters": lambda step: shutil.rmtree(step / "params"),
    "no EMA": lambda step: shutil.rmtree(step / "ema"),
    "no metadata": lambda step: shutil.rmtree(step / "meta"),
    "parameters of another step": lambda step: (
        shutil.rmtree(step / "params"),
        shutil.copytree(step.parent / "1/params", step / "params"),
    ),
}


@pytest.fixture(params=DAMAGE)
def damaged(request, folder):
    """Step 2 is not what was saved."""
    DAMAGE[request.param](folder / "2")
    return folder


def test_a_damaged_checkpoint_is_refused_by_name(damaged):
    with pytest.raises(checkpoint.DamagedCheckpoint, match=f"^{damaged}/2: found a damaged"):
        restore(damaged)
    assert steps(damaged) == ["1", "2"]


def test_the_one_before_it_is_used_if_that_is_allowed(damaged, caplog):
    """The damaged one is kept under another name."""
    state, results = restore(damaged, "previous")
    assert (int(state.step), results) == (1, {"score": 1.0})
    equal(state, at(fresh()[0], 1))
    assert steps(damaged) == ["1", "2.damaged"]
    assert f"{damaged}/2: found a damaged" in caplog.text and "Step 1, before it" in caplog.text


def test_its_step_can_be_saved_anew(damaged):
    restore(damaged, "previous")
    save(damaged, 2)
    equal(restore(damaged)[0], at(fresh()[0], 2))
    assert steps(damaged) == ["1", "2", "2.damaged"]


def test_every_damaged_one_is_kept(folder):
    for expected in ("2.damaged", "2.damaged2"):
        DAMAGE["a bit of the parameters"](folder / "2")
        restore(folder, "previous")
        assert expected in steps(folder)
        save(folder, 2)


def test_without_another_one_it_is_refused_always(folder):
    """Training must not start anew as if nothing had been there."""
    for step in ("1", "2"):
        DAMAGE["metadata cut off"](folder / step)
    with pytest.raises(checkpoint.DamagedCheckpoint, match=f"^{folder}/1: found a damaged"):
        restore(folder, "previous")
    assert steps(folder) == ["1", "2"]


@pytest.mark.parametrize("name", ["a bit of the EMA", "no EMA", "no metadata"])
def test_evaluation_refuses_damaged_parameters(folder, name):
    """The plain parameters do not stand in for the EMA."""
    DAMAGE[name](folder / "2")
    with pytest.raises(InputError, match=f"^{folder}/2: found a damaged"):
        restore_params(folder)


def test_evaluation_uses_the_one_before_it_if_that_is_allowed(folder):
    """And changes no file."""
    DAMAGE["a bit of the EMA"](folder / "2")
    params, step = restore_params(folder, "previous")
    assert step == 1
    equal(params, at(fresh()[0], 1).ema)
    assert steps(folder) == ["1", "2"]


def test_evaluation_does_not_need_the_rest(folder):
    DAMAGE["a bit of the optimiser's state"](folder / "2")
    equal(restore_params(folder)[0], at(fresh()[0], 2).ema)


@pytest.mark.parametrize("old, new", [("0.1", "0.2"), ('"score": 2', '"score": 3')])
def test_metadata_that_still_reads_well(folder, old, new):
    file = folder / "2/meta/metadata"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(checkpoint.DamagedCheckpoint, match="meta is not what was saved"):
        checkpoint.read_meta(folder)


def test_metadata_that_was_written_anew(folder):
    """It is the same to a reader."""
    file = folder / "2/meta/metadata"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=2))
    assert int(restore(folder)[0].step) == 2


@pytest.mark.parametrize("how", [flip, cut, Path.unlink])
def test_no_file_can_change_unnoticed(saved, tmp_path, how):
    """Each in turn: the numbers are those that were saved, or it is refused by name."""
    expected, noticed = restore(saved), []
    for file in sorted(path for path in (saved / "2").rglob("*") if path.is_file()):
        name = file.relative_to(saved)
        if name.parts[1] in ("ema", "opt_state"):  # files of the same kinds as those of params
            continue
        shutil.copytree(saved, tmp_path / "run")
        how(tmp_path / "run" / name)
        try:
            equal(restore(tmp_path / "run"), expected)
        except checkpoint.DamagedCheckpoint as error:
            assert str(error).startswith(f"{tmp_path}/run/2: found a damaged checkpoint")
            noticed.append(str(name))
        shutil.rmtree(tmp_path / "run")
    assert {"2/meta/metadata", "2/params/manifest.ocdbt"} < set(noticed)


def test_a_checkpoint_from_before_there_were_checksums(folder):
    """It can be used; what Orbax sees by itself is refused."""
    file = folder / "2/meta/metadata"
    meta = json.loads(file.read_text())
    del meta["arrays"], meta["checksum"]
    file.write_text(json.dumps(meta))
    equal(restore(folder)[0], at(fresh()[0], 2))
    assert restore_params(folder)[1] == 2
    DAMAGE["parameters cut off"](folder / "2")
    with pytest.raises(checkpoint.DamagedCheckpoint):
        restore(folder)


# --- a save that fails ---------------------------------------------------------------------------


@pytest.fixture
def small_files():
    """No file can grow beyond 100 kB, less than the parameters need: as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WAYS_TO_NOTICE = {
    "waiting for it": checkpoint.finish,
    "asking for it": checkpoint.check,
    "saving again": lambda manager: checkpoint.save(manager, at(fresh()[0], 3), {}, {}),
    "closing": lambda manager: None,
}


@pytest.mark.parametrize("notice", WAYS_TO_NOTICE)
def test_a_save_that_failed_is_told(tmp_path, small_files, notice):
    """With the folder, and what is there: the last one, though only one is kept."""
    save(tmp_path, 1)
    told = f"^{tmp_path}: a checkpoint could not be saved .*File too large.*; step 1 is the last"
    with pytest.raises(checkpoint.SaveError, match=told):
        with checkpoint.closing(checkpoint.open_manager(tmp_path, keep=1)) as manager:
            small_files()
            checkpoint.save(manager, at(fresh()[0], 2), {}, {})
            for _ in range(100):
                WAYS_TO_NOTICE[notice](manager)
                time.sleep(0 if notice == "closing" else 0.05)
            assert notice == "closing"


def test_a_failed_save_leaves_the_last_one(tmp_path, small_files):
    """What was cut off is gone after the next start, and its step can be saved then."""
    save(tmp_path, 1)
    small_files()
    with pytest.raises(checkpoint.SaveError):
        save(tmp_path, 2)
    for _ in range(20):  # threads of the failed save may still run here, and make folders anew
        equal(restore(tmp_path)[0], at(fresh()[0], 1))
        if steps(tmp_path) == ["1"]:
            break
        time.sleep(0.5)
    assert steps(tmp_path) == ["1"]


def test_a_folder_that_cannot_be_written_to(tmp_path):
    """At the start it is the user's to mend, later it is a save that failed; neither waits."""
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=f"^{tmp_path}/file: found a folder that cannot be written"
    ):
        checkpoint.open_manager(tmp_path / "file", keep=1)
    with pytest.raises(checkpoint.SaveError, match=f"^{tmp_path}/run: a .* could not be saved"):
        with checkpoint.closing(checkpoint.open_manager(tmp_path / "run", keep=1)) as manager:
            (tmp_path / "run").rmdir()
            (tmp_path / "run").touch()
            checkpoint.save(manager, at(fresh()[0], 2), {}, {})


def test_a_first_save_that_fails(tmp_path, small_files):
    small_files()
    with pytest.raises(checkpoint.SaveError, match="could not be saved .*; there is none yet$"):
        save(tmp_path, 1)


def test_another_error_is_not_hidden_by_it(tmp_path, small_files):
    with pytest.raises(KeyError):
        with checkpoint.closing(checkpoint.open_manager(tmp_path, keep=1)) as manager:
            small_files()
            checkpoint.save(manager, at(fresh()[0], 2), {}, {})
            raise KeyError
