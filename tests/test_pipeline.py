"""Tests of the whole: the tiny quickstart from images to samples, and what can be done with it.

One run of `job=pipeline` (fixture `finished_quickstart`); what changes a workdir works on a copy.
"""

import contextlib
import io
import json
import logging
import math
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bar_jax
from bar_jax.config.file import load_config
from bar_jax.main import main
from bar_jax.runtime import workdir
from bar_jax.runtime.errors import InputError
from bar_jax.sampling.kept import half_mask, real_images
from bar_jax.visualize.grid import CELL, GAP

pytestmark = pytest.mark.slow
CONFIG = str(Path(__file__).resolve().parents[1] / "configs/quickstart.py:tiny")
STAGES = ("train_tokenizer", "train_generator")
SIZE = 16  # pixels of the tiny images
SECONDS = {f"seconds_{stage}" for stage in (*STAGES, "encode", "sample", "evaluate")}
PROMISED = SECONDS | {
    "reconstruction_psnr",
    "bits_per_token",
    "bit_budget",
    "generator_loss_bits",
    "sample_class_accuracy",
    "sample_classifier_fid",
    "sample_classifier_fid_note",  # of 20 samples
    "train_generator_classifier_fid_note",
    "evaluated_generator_step",
    "evaluated_with",
    "features_classifier",
    "reference_digest",
    "real_class_accuracy",
    "total_seconds",
}


@pytest.fixture(scope="module", autouse=True)
def _one_device(one_device):
    """Tests here run the command."""


def _command(folder, *arguments) -> dict:
    """Runs the command; returns the JSON that it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = main(["main", f"--config={CONFIG}", f"--workdir={folder}", *arguments])
    assert status == 0
    return json.loads(printed.getvalue())


@pytest.fixture(scope="module")
def run(finished_quickstart):
    """The finished pipeline: its folder and what it printed. Nothing may be written there."""
    return finished_quickstart


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the finished workdir, to be changed."""
    return Path(shutil.copytree(run.folder, tmp_path / "run"))


@pytest.fixture(scope="module")
def pipe(run):
    return bar_jax.Pipeline.load(run.folder)


def _samples(folder) -> dict:
    with np.load(folder / "samples.npz") as stored:
        return dict(stored)


# --- what it writes ------------------------------------------------------------------------------


def test_whoever_shares_a_group_may_read_and_write_all_of_it(run):
    """Files are 664 and folders 775, as the umask says."""
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in run.folder.rglob("*")}
    assert {p: m for p, m in modes.items() if m != (0o775 if p.is_dir() else 0o664)} == {}


def test_config_json_has_all_fields_as_resolved(run):
    config = load_config(CONFIG)
    config.workdir = str(run.folder)
    assert json.loads((run.folder / "config.json").read_text()) == workdir.to_json(config)


def test_config_json_reads_back(run):
    config = load_config(CONFIG)
    config.workdir = str(run.folder)
    assert workdir.read_config(run.folder) == config


def test_metrics_have_a_line_per_logged_step(run):
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    # The last line of a stage is its evaluation.
    expected = [(stage, step) for stage in STAGES for step in (1, 2, 2)]
    assert [(line["stage"], line["step"]) for line in lines] == expected


def test_metrics_have_norms_and_rates(run):
    logged = {"loss", "grad_norm", "param_norm", "update_norm", "learning_rate"}
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    for line in (lines[1], lines[4]):  # step 2 of each stage
        assert logged | {"images_per_second"} <= line.keys(), line
        assert all(math.isfinite(line[name]) for name in logged), line


@pytest.mark.parametrize("stage", STAGES)
def test_tensorboard_events(run, stage):
    [events] = (run.folder / "tensorboard" / stage).glob("events.*")
    assert events.stat().st_size > 1000  # a picture is among them


def test_summary_has_what_is_promised(run):
    assert PROMISED - run.printed.keys() == set()
    assert run.printed["real_class_accuracy"] >= 0.98


def test_summary_is_flat(run):
    assert not [name for name, value in run.printed.items() if isinstance(value, dict)]


def test_summary_json_is_what_was_printed(run):
    assert json.loads((run.folder / "summary.json").read_text()) == run.printed


def test_total_seconds_are_those_of_the_stages(run):
    total = sum(run.printed[name] for name in SECONDS)
    assert run.printed["total_seconds"] == pytest.approx(total, abs=0.1)


@pytest.mark.parametrize("part", ["tokenizer", "generator"])
def test_checkpoint_of_the_last_step(run, part):
    assert run.printed[f"{part}_step"] == 2
    assert (run.folder / part / "2").is_dir()


def test_samples_png_has_a_row_per_class(run):
    """Ten classes, two images each, enlarged."""
    width, height = 2 * (CELL + GAP) + GAP, 10 * (CELL + GAP) + GAP
    assert Image.open(run.folder / "samples.png").size == (width, height)


def test_reconstructions_png_has_a_pair_of_rows_per_class(run):
    width, height = Image.open(run.folder / "reconstructions.png").size
    assert width == 8 * (CELL + GAP) + GAP
    assert (height - GAP) % (2 * (CELL + GAP)) == 0


def test_samples_npz_is_what_adm_reads(run):
    """`arr_0`, uint8 NHWC; classes interleaved, equally many of each."""
    samples = _samples(run.folder)
    assert (samples["arr_0"].dtype, samples["arr_0"].shape) == (np.uint8, (20, SIZE, SIZE, 3))
    np.testing.assert_array_equal(samples["arr_1"], np.tile(np.arange(10), 2))


def test_cached_images_are_all_of_them(run):
    assert [run.printed[f"cached_{split}_images"] for split in ("train", "validation")] == [
        1621,
        176,
    ]


# --- running it again ----------------------------------------------------------------------------


def test_again_reports_that_it_is_finished(copy, caplog):
    """No step is trained, nothing is encoded or drawn: those files stay byte for byte."""

    def state():
        folders = ("tokenizer", "generator", "cache", "tensorboard")
        files = [file for folder in folders for file in (copy / folder).rglob("*")]
        files += [copy / "samples.npz", copy / "metrics.jsonl"]
        return {file: file.stat().st_mtime_ns for file in files if file.is_file()}

    before = state()
    with caplog.at_level(logging.INFO, "bar_jax"):
        _command(copy)
    assert state() == before
    for stage in STAGES:
        assert f"{stage}: finished at step 2, nothing to do" in caplog.text


def test_other_settings_keep_the_earlier_samples(copy):
    before = (copy / "samples.npz").read_bytes()
    summary = _command(copy, "--config.job=sample", "--config.sample.guidance_scale=2.0")
    assert (copy / "samples.1.npz").read_bytes() == before
    # The new ones say what they were drawn with.
    settings = json.loads(str(_samples(copy)["settings"]))
    assert settings["sample_guidance_scale"] == summary["sample_guidance_scale"] == 2.0


def test_samples_from_before_there_were_digests_stay(copy):
    stored = _samples(copy)
    settings = json.loads(str(stored["settings"]))
    for part in ("tokenizer", "generator"):
        settings.pop(f"{part}_digest")
    np.savez(copy / "samples.npz", **stored | {"settings": json.dumps(settings)})
    before = (copy / "samples.npz").read_bytes()
    _command(copy, "--config.job=sample")
    assert (copy / "samples.npz").read_bytes() == before


def test_damaged_samples_are_kept_and_drawn_anew(copy):
    before = _samples(copy)["arr_0"]
    (copy / "samples.npz").write_bytes(b"PK\x03\x04 cut off")
    _command(copy, "--config.job=sample")
    assert (copy / "samples.1.npz").read_bytes() == b"PK\x03\x04 cut off"
    np.testing.assert_array_equal(_samples(copy)["arr_0"], before)


# --- a tokenizer of another workdir --------------------------------------------------------------


def test_the_whole_way_of_a_tuned_tokenizer(run, tmp_path, caplog):
    """Tuned from the untuned one and copied: that one's tokens, and their generator, stay good."""
    tuned, new = tmp_path / "tuned", tmp_path / "new"
    stage = ["--config.job=train_tokenizer", "--config.train_tokenizer.stage=decoder_finetune"]
    told = _command(tuned, *stage, f"--config.init_from={run.folder}")
    others = shutil.ignore_patterns("tokenizer", "summary.json")
    shutil.copytree(run.folder, new, ignore=others)
    shutil.copytree(tuned / "tokenizer", new / "tokenizer")
    parts = lambda: {file: file.stat().st_mtime_ns for file in new.glob("*/*/*")}  # noqa: E731
    before = parts()

    summary = _command(new)
    assert "is used as it is; it has train_tokenizer.stage=decoder_finetune\n" in caplog.text
    assert parts() == before, "nothing is trained or encoded"
    lost = {"seconds_train_tokenizer", "train_generator_classifier_fid_note"}  # of training itself
    assert PROMISED - summary.keys() == lost
    for name in ("tokenizer_step", "reconstruction_psnr"):
        assert summary[name] == told[name], name
    # The untuned one's samples, of the same steps, are not taken for its own.
    assert np.any(_samples(new)["arr_0"] != _samples(run.folder)["arr_0"])
    unguided = ["--config.sample.guidance_scale=1", "--config.sample.temperature=2.0"]
    assert _command(new, "--config.job=sample", *unguided)["sample_guidance_scale"] == 1
    assert _command(new, "--config.job=evaluate")["evaluated_guidance_scale"] == 1


# --- other jobs on a finished workdir ------------------------------------------------------------


def test_reconstruct_measures_all_validation_images(copy):
    summary = _command(copy, "--config.job=reconstruct")
    assert summary["reconstruction_images"] == 176


def test_evaluate_reads_other_samples(copy, tmp_path):
    """Real images of digits pass for samples."""
    config = load_config(CONFIG)
    labels = np.tile(np.arange(10), 3)
    np.savez(tmp_path / "real.npz", arr_0=real_images(config, labels), arr_1=labels)
    summary = _command(
        copy, "--config.job=evaluate", f"--config.evaluate.samples={tmp_path / 'real.npz'}"
    )
    assert (summary["sample_class_accuracy"] > 0.9, summary["evaluated_samples"]) == (True, 30)


def test_sample_given_labels_and_half_of_real_images(copy):
    summary = _command(
        copy, "--config.job=sample", "--config.sample.labels=3,7", "--config.sample.keep=upper"
    )
    assert (summary["sample_keep"], summary["sample_classes"]) == ("upper", [3, 7])
    np.testing.assert_array_equal(_samples(copy)["arr_1"], [3, 7])


@pytest.mark.parametrize(
    "half, places",
    [("upper", [0, 1, 2]), ("lower", [3, 4, 5]), ("left", [0, 1, 3, 4]), ("right", [2, 5])],
)
def test_half_of_a_grid(half, places):
    """Two rows of three: the middle column belongs to the left."""
    np.testing.assert_array_equal(np.flatnonzero(half_mask((2, 3), half)), places)


# --- from Python ---------------------------------------------------------------------------------


def test_pipeline_samples_what_the_command_samples(pipe, run):
    """Same seed, labels and settings."""
    drawn = pipe.sample(labels=np.tile(np.arange(10), 2), seed=0)
    np.testing.assert_array_equal(drawn, _samples(run.folder)["arr_0"])


def test_an_image_does_not_depend_on_its_batch(pipe, run):
    """Image i depends on the seed, its label and i: three of the twenty, alone."""
    drawn = pipe.sample(labels=[0, 1, 2], seed=0)
    np.testing.assert_array_equal(drawn, _samples(run.folder)["arr_0"][:3])


def test_another_seed_draws_another_image(pipe, run):
    assert not np.array_equal(pipe.sample(labels=[0], seed=1), _samples(run.folder)["arr_0"][:1])


def test_integers_of_numpy_are_integers(pipe):
    given = pipe.sample(np.array([0]), seed=np.int64(1))
    np.testing.assert_array_equal(given, pipe.sample([0], seed=1))


def test_the_same_label_twice_is_drawn_twice(pipe):
    first, second = pipe.sample(labels=[3, 3], seed=0)
    assert not np.array_equal(first, second)


def test_encode_gives_bits(pipe, run):
    tokens = pipe.encode(_samples(run.folder)["arr_0"][:2])
    assert (tokens.dtype, tokens.shape, set(np.unique(tokens)) <= {0, 1}) == (
        np.uint8,
        (2, 16, 16),
        True,
    )


def test_kept_tokens_stay(pipe, run):
    """All tokens kept: the tokenizer's reconstruction."""
    images = _samples(run.folder)["arr_0"][:2]
    kept = pipe.sample(labels=[0, 1], images=images, keep=np.ones((4, 4), bool))
    np.testing.assert_array_equal(kept, pipe.decode(pipe.encode(images)))


def test_no_token_kept_is_no_image_given(pipe, run):
    images = _samples(run.folder)["arr_0"][2:4]
    drawn = pipe.sample(labels=[0, 1], images=images, keep=np.zeros((2, 4, 4), bool))
    np.testing.assert_array_equal(drawn, _samples(run.folder)["arr_0"][:2])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"labels": [10]}, "sample.labels: found 10, expected integers from 0 to 9"),
        (
            {"labels": [0], "temperature": -1},
            "temperature: found -1, expected a number of at least 0",
        ),
        ({"labels": [0], "guidance_scale": math.nan}, "guidance_scale: found nan"),
        ({"labels": [0], "guidance_scale": 1e39}, "guidance_scale: found 1e+39"),
        ({"labels": [0], "guidance_scale": "5"}, "guidance_scale: found '5', expected a number"),
        ({"labels": [0], "tokens": 4}, "sample.tokens: found 4, expected 0, or model.t"),
        ({"labels": [0], "tokens": -1}, "sample.tokens: found -1, expected at least 0"),
        ({"labels": [0], "steps": 4}, "steps: found 4, expected None: it is for real-valued"),
        ({"labels": [[0, 1], [2, 3]]}, "labels: found int64[2, 2], expected a row of integers"),
        ({"labels": [[0], [1, 2]]}, "labels: found a list that is no array"),
        ({"labels": [0], "unmasking_schedule": [8, 4, 4]}, "sample.unmasking_schedule: found (8,"),
        ({"labels": [0], "keep": np.ones((4, 4), bool)}, "images, keep: found one of them"),
        (
            {"labels": [0], "images": np.zeros((1, 8, 8, 3), np.uint8), "keep": np.ones((4, 4))},
            "images: found uint8[1, 8, 8, 3], expected uint8[1, 16, 16, 3]",
        ),
        (
            {
                "labels": [0],
                "images": np.zeros((2, SIZE, SIZE, 3), np.uint8),
                "keep": np.ones((4, 4), bool),
            },
            "images: found uint8[2, 16, 16, 3], expected uint8[1, 16, 16, 3]",
        ),
        (
            {
                "labels": [0],
                "images": np.zeros((1, SIZE, SIZE, 3), np.uint8),
                "keep": np.ones((4, 4)),
            },
            "keep: found float64[4, 4], expected bool[4, 4] or bool[1, 4, 4]",
        ),
        ({"labels": []}, "labels: found none"),
        ({"labels": [1.5]}, "sample.labels: found 1.5"),
        ({"labels": [0], "seed": -1}, "seed: found -1"),
        ({"labels": [0], "seed": 1.5}, "seed: found 1.5, expected an integer"),
    ],
    ids=lambda value: value.partition(",")[0] if isinstance(value, str) else "",
)
def test_pipeline_names_the_wrong_argument(pipe, arguments, message):
    with pytest.raises(InputError) as error:
        pipe.sample(**arguments)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        (np.zeros((1, 16, 8)), "float64[1, 16, 8] from 0 to 0"),
        (np.full((1, 16, 16), 2), "int64[1, 16, 16] from 2 to 2"),
        (np.zeros((16, 16)), "float64[16, 16] from 0 to 0"),
        (np.full((1, 16, 16), np.nan), "float64[1, 16, 16], 256 of it not finite"),
        (np.zeros((1, 17, 16)), "float64[1, 17, 16] from 0 to 0"),
        ([[0], [0, 1]], "a list that is no array"),
    ],
)
def test_decode_refuses_what_is_no_token(pipe, tokens, found):
    with pytest.raises(InputError) as error:
        pipe.decode(tokens)
    assert str(error.value).startswith(f"tokens: found {found}")
    assert str(error.value).endswith("expected bits {0, 1} [B, 1 to 16, 16]")


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.zeros((1, SIZE, SIZE, 3)), "float64[1, 16, 16, 3]"),
        (np.zeros((SIZE, SIZE, 3), np.uint8), "uint8[16, 16, 3]"),
        (np.zeros((1, 3, SIZE, SIZE), np.uint8), "uint8[1, 3, 16, 16]"),
        (np.zeros((1, SIZE, SIZE, 4), np.uint8), "uint8[1, 16, 16, 4]"),
        ("picture.png", "<U11[]"),
        ([[0], [0, 1]], "a list that is no array"),
    ],
)
def test_encode_refuses_what_is_no_image(pipe, images, found):
    with pytest.raises(InputError) as error:
        pipe.encode(images)
    assert str(error.value).startswith(f"images: found {found}")
    assert str(error.value).endswith("expected uint8[B, 16, 16, 3]")


def test_load_needs_a_workdir(tmp_path):
    with pytest.raises(InputError, match="config.json: found no such file, expected a workdir"):
        bar_jax.Pipeline.load(tmp_path)


# --- files that do not fit -----------------------------------------------------------------------


def _refused(capsys, folder, *arguments) -> str:
    """The last line of standard error of a command that ends with status 2."""
    status = main(["main", f"--config={CONFIG}", f"--workdir={folder}", *arguments])
    assert status == 2
    return capsys.readouterr().err.splitlines()[-1].removeprefix("error: ")


def _edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_cache_of_another_tokenizer(copy, capsys):
    _edit(copy / "cache/train/header.json", fingerprint="0123456789abcdef")
    line = _refused(capsys, copy, "--config.job=train_generator")
    start = f"{copy / 'cache/train'}: found a cache of tokens with fingerprint '0123456789abcdef'"
    assert line.startswith(start)


def test_a_truncated_shard_is_named(copy, capsys):
    """Not counted anew as a smaller cache."""
    shard = min((copy / "cache/train").glob("*.array_record"))
    shard.write_bytes(shard.read_bytes()[:-100])
    line = _refused(capsys, copy, "--config.job=encode")
    assert line.startswith(f"{shard}: found {shard.stat().st_size} bytes, expected")


def test_a_checkpoint_of_another_shape(copy, capsys):
    """The stored config was changed to what the checkpoint is not."""
    config = json.loads((copy / "generator/config.json").read_text())
    config["model"]["generator"]["depth"] = 3
    _edit(copy / "generator/config.json", **config)
    line = _refused(capsys, copy, "--config.job=sample", "--config.model.generator.depth=3")
    assert line.startswith(f"{copy / 'generator/2/ema'}: trunk/blocks/")
    assert line.endswith("of the configured model")


def test_no_such_folder_to_start_from(tmp_path, capsys):
    nothing = tmp_path / "nothing"
    line = _refused(
        capsys, tmp_path / "run", "--config.job=train_tokenizer", f"--config.init_from={nothing}"
    )
    assert line.startswith(str(nothing))


@pytest.mark.parametrize(
    "arrays, found",
    [
        (None, "no such file"),
        ({}, "nothing"),
        (
            {"arr_0": np.zeros((2, 8, 8, 3), np.uint8), "arr_1": np.zeros(2, int)},
            "images of 8 x 8 px, expected 16 x 16 px",
        ),
        (
            {"arr_0": np.zeros((0, SIZE, SIZE, 3), np.uint8), "arr_1": np.zeros(0, int)},
            "uint8[0, 16, 16, 3], expected",
        ),
        (
            {"arr_0": np.zeros((2, SIZE, SIZE, 3), np.uint8), "arr_1": np.asarray([0, 10])},
            "int64[2] from 0 to 10, expected a class from 0 to 9",
        ),
    ],
    ids=["none", "empty", "another size", "no images", "another class"],
)
def test_samples_that_cannot_be_evaluated(arrays, found, tmp_path, capsys):
    path = tmp_path / "other.npz"
    if arrays is not None:
        np.savez(path, **arrays)
    line = _refused(
        capsys, tmp_path / "run", "--config.job=evaluate", f"--config.evaluate.samples={path}"
    )
    assert line.startswith(str(path)) and f"found {found}" in line


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 cut off", b"text"])
def test_samples_that_cannot_be_read(data, tmp_path, capsys):
    path = tmp_path / "other.npz"
    path.write_bytes(data)
    line = _refused(
        capsys, tmp_path / "run", "--config.job=evaluate", f"--config.evaluate.samples={path}"
    )
    assert line.startswith(f"{path}: found an unreadable file (")
