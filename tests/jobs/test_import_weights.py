"""Tests of bar_jax/jobs/import_weights.py and export_weights.py, through the command."""

import contextlib
import io
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bar_jax
from bar_jax import main as command
from bar_jax.jobs import train_tokenizer
from bar_jax.pretrained import bar_fsq
from bar_jax.runtime import workdir
from bar_jax.runtime.errors import InputError
from bar_jax.training import checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _one_device(one_device):
    """Tests here run the command."""


def run(config, folder, **changes):
    """Runs a job on a copy of the config; returns its summary."""
    config = config.copy_and_resolve_references()
    config.workdir = str(folder)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert command.run(config) == 0
    return json.loads(printed.getvalue())


def import_both(config, folder, paths):
    return run(
        config, folder, job="import_weights",
        published__generator=str(paths["generator"]), published__tokenizer=str(paths["tokenizer"]),
    )  # fmt: skip


@pytest.fixture
def imported(published_config, published_files, tmp_path):
    """A workdir into which both files were imported."""
    folder = tmp_path / "run"
    summary = import_both(published_config, folder, published_files)
    return SimpleNamespace(folder=folder, summary=summary, paths=published_files)


def test_import_sample_export(published_config, imported):
    """The whole way of a published model; from Python it draws the same images."""
    assert imported.summary["generator_imported_from"] == str(imported.paths["generator"])
    assert imported.summary["tokenizer_imported_from"] == str(imported.paths["tokenizer"])

    assert run(published_config, imported.folder, job="sample")["samples"] == 2
    with np.load(imported.folder / "samples.npz") as stored:
        images = stored["arr_0"]
    assert images.shape == (2, 64, 64, 3)
    pipe = bar_jax.Pipeline.from_published(published_config, **imported.paths)
    np.testing.assert_array_equal(pipe.sample([1, 2]), images)
    loaded = bar_jax.Pipeline.load(imported.folder)
    np.testing.assert_array_equal(loaded.sample([1, 2]), images)
    np.testing.assert_array_equal(loaded.encode(images), pipe.encode(images))

    summary = run(published_config, imported.folder, job="export_weights")
    for part, given in imported.paths.items():
        path = imported.folder / f"{part}.safetensors"
        told = summary[f"{part}_exported_to"], summary[f"{part}_exported_step"]
        assert told == (str(path), 0)
        found, expected = load_file(path), load_file(given)
        expected = {n: x for n, x in expected.items() if not n.startswith(bar_fsq.NOT_READ)}
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            tolerance = 1e-6 if ".rope." in name else 0
            np.testing.assert_allclose(found[name], tensor, rtol=0, atol=tolerance, err_msg=name)


def test_import_after_export_is_the_identity(published_config, imported, tmp_path):
    """Of the whole files, byte by byte."""
    first, second = tmp_path / "first", tmp_path / "second/deep"
    run(published_config, imported.folder, job="export_weights", published__export=str(first))
    paths = {part: first / f"{part}.safetensors" for part in imported.paths}
    import_both(published_config, tmp_path / "again", paths)
    run(published_config, tmp_path / "again", job="export_weights", published__export=str(second))
    for path in paths.values():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_one_part_alone(published_config, published_files, tmp_path):
    summary = run(
        published_config, tmp_path, job="import_weights",
        published__tokenizer=str(published_files["tokenizer"]),
    )  # fmt: skip
    assert "generator_imported_from" not in summary
    assert checkpoint.read_meta(tmp_path / "tokenizer")["step"] == 0
    assert not (tmp_path / "generator").exists()
    exported = run(published_config, tmp_path, job="export_weights")
    assert [key for key in exported if key.endswith("_exported_to")] == ["tokenizer_exported_to"]
    run(
        published_config, tmp_path, job="import_weights",
        published__generator=str(published_files["generator"]),
    )  # fmt: skip
    assert checkpoint.read_meta(tmp_path / "generator")["step"] == 0


def test_a_pipeline_tells_of_an_imported_tokenizer(published_config, imported):
    """Which it takes as it is; the file is what it has of its training."""
    published_config.workdir = str(imported.folder)
    path = str(imported.paths["tokenizer"])
    assert workdir.trained_otherwise(published_config) == {"published.tokenizer": path}
    summary = train_tokenizer.report_finished(published_config)
    assert (summary["tokenizer_step"], "seconds_train_tokenizer" in summary) == (0, False)


@pytest.mark.exhaustive
def test_a_generator_is_trained_on_an_imported_tokenizer_and_from_imported_weights(
    published_config, imported, tmp_path
):
    """Tokens of the imported tokenizer; another workdir that starts from the imported one."""
    folder = tmp_path / "finetuned"
    tokenizer = str(imported.paths["tokenizer"])
    run(published_config, folder, job="import_weights", published__tokenizer=tokenizer)
    run(published_config, folder, job="encode")
    changes = {"train_generator__steps": 1, "train_generator__optimizer__learning_rate": 0.0}
    changes |= {"train_generator__optimizer__end_learning_rate": 0.0}
    summary = run(
        published_config, folder, job="train_generator", init_from=str(imported.folder), **changes
    )
    assert summary["generator_step"] == 1
    run(published_config, folder, job="export_weights", init_from=str(imported.folder), **changes)
    found = load_file(folder / "generator.safetensors")
    expected = load_file(imported.paths["generator"])
    np.testing.assert_array_equal(found["embeddings.weight"], expected["embeddings.weight"])


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("job", ["train_generator", "train_tokenizer", "pipeline"])
def test_imported_weights_are_not_trained_in_place(published_config, imported, job):
    """A pipeline takes an imported tokenizer as it is; it would train the generator."""
    part = "tokenizer" if job == "train_tokenizer" else "generator"
    expected = f"{part}: found imported weights, expected another --workdir with --config.init_from"
    with pytest.raises(InputError, match=expected):
        run(published_config, imported.folder, job=job)


def test_nothing_to_import(published_config, tmp_path):
    with pytest.raises(InputError, match="published.generator, published.tokenizer: found no file"):
        run(published_config, tmp_path, job="import_weights")


def test_a_checkpoint_is_not_overwritten(published_config, imported):
    before = checkpoint.read_meta(imported.folder / "tokenizer")
    other = imported.paths["tokenizer"].rename(imported.folder / "other.safetensors")
    with pytest.raises(InputError, match="tokenizer: found a checkpoint, expected none"):
        import_both(published_config, imported.folder, imported.paths | {"tokenizer": other})
    assert checkpoint.read_meta(imported.folder / "tokenizer") == before


def test_an_import_that_was_cut_off_goes_on(published_config, imported):
    """Between the two parts: the tokenizer is there, the generator is not."""
    before = checkpoint.read_meta(imported.folder / "tokenizer")
    shutil.rmtree(imported.folder / "generator")
    assert import_both(published_config, imported.folder, imported.paths) == imported.summary
    assert checkpoint.read_meta(imported.folder / "tokenizer") == before
    assert checkpoint.read_meta(imported.folder / "generator")["step"] == 0


def test_nothing_is_written_if_one_file_is_wrong(published_config, published_files, tmp_path):
    tensors = load_file(published_files["generator"])
    tensors.pop("cls_token")
    save_file(tensors, published_files["generator"])
    with pytest.raises(InputError, match="1 missing:\n    cls_token"):
        import_both(published_config, tmp_path / "run", published_files)
    assert not (tmp_path / "run/tokenizer").exists()


def test_another_model_than_the_workdirs(published_config, imported):
    """The other jobs take the imported model's fields as those of a trained one."""
    with pytest.raises(InputError, match="model.generator.depth: found 3, expected 2"):
        run(published_config, imported.folder, job="sample", model__generator__depth=3)


def test_nothing_to_export(published_config, tmp_path):
    with pytest.raises(
        InputError, match="found no trained model, expected tokenizer/ or generator/"
    ):
        run(published_config, tmp_path, job="export_weights")


def test_a_file_is_not_overwritten(published_config, imported):
    path = imported.folder / "generator.safetensors"
    path.write_text("mine")
    with pytest.raises(InputError, match="generator.safetensors: found a file, expected none"):
        run(published_config, imported.folder, job="export_weights")
    assert path.read_text() == "mine"


def test_an_export_needs_a_folder(published_config, imported):
    """Not a file, such as one that is there."""
    file = str(imported.paths["generator"])
    with pytest.raises(InputError, match="published.export: .*, expected a folder"):
        run(published_config, imported.folder, job="export_weights", published__export=file)


def test_a_tokenizer_starts_from_one_for_images_of_the_same_size(
    published_config, imported, tmp_path
):
    changes = {"init_from": str(imported.folder), "data__image_size": 32}
    with pytest.raises(InputError, match="data.image_size: found 32, expected 64, which the posit"):
        run(published_config, tmp_path / "new", job="train_tokenizer", **changes)
    assert not (tmp_path / "new").exists()


def test_a_tokenizer_is_used_at_its_size(published_config, imported):
    with pytest.raises(InputError, match="data.image_size: found 32, expected 64, with which"):
        run(published_config, imported.folder, job="reconstruct", data__image_size=32)
