"""Tests of bar_jax/jobs/figures.py."""

import contextlib
import io
import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from bar_jax.jobs.figures import (
    convergence,
    figure_4_points,
    figure_6_points,
    psnr_points,
)
from bar_jax.main import main
from bar_jax.runtime.errors import InputError
from bar_jax.visualize.figures import Point

CONFIG = str(Path(__file__).resolve().parents[2] / "configs/masked_bit/bar_b.py")


@pytest.fixture
def make_run(tmp_path):
    """Writes a workdir of 256 tokens of 32 bits; returns its path."""

    def make(name, summary, head="masked_bit"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps(summary))
        config = {"model": {"head": {"kind": head}, "tokenizer": {"bits": 32}}}
        (folder / "config.json").write_text(json.dumps(config))
        return str(folder)

    return make


def _figures(folder, *runs) -> dict:
    printed = io.StringIO()
    arguments = [f"--config={CONFIG}", f"--workdir={folder}", "--config.job=figures"]
    with contextlib.redirect_stdout(printed):
        assert main(["main", *arguments, f"--config.figures.runs={','.join(runs)}"]) == 0
    return json.loads(printed.getvalue())


@pytest.mark.parametrize(
    "scale, quantity", [(5.0, "sample_fid_guided"), (1.0, "sample_fid"), (0, "sample_fid")]
)
@pytest.mark.parametrize("head", ["linear", "bit", "masked_bit"])
def test_points_of_a_run(make_run, scale, quantity, head):
    measured = {"reconstruction_fid": 0.75, "sample_fid": 1.5, "evaluated_guidance_scale": scale}
    run = make_run("a", measured, head)
    assert figure_4_points(run) == ([Point(run, "reconstruction_fid", "", 8192, 0.75)], [])
    points = [Point(run, "reconstruction_fid", "", 32, 0.75), Point(run, quantity, head, 32, 1.5)]
    assert figure_6_points(run) == (points, [])


def test_psnr_is_no_rfid(make_run):
    run = make_run("a", {"reconstruction_psnr": 25.0, "generator_loss_bits": 0.3})
    assert figure_4_points(run) == ([], ["reconstruction_fid"])


def test_a_tokenizer_alone_is_in_the_first_panel(make_run):
    run = make_run("a", {"reconstruction_fid": 0.75})
    points, missing = figure_6_points(run)
    assert points == [Point(run, "reconstruction_fid", "", 32, 0.75)]
    assert missing == ["evaluated_guidance_scale"]


@pytest.mark.parametrize("value", [None, "1.2", True, float("nan"), float("inf"), 0, -1.0])
def test_what_is_no_number_is_missing(make_run, value):
    run = make_run("a", {"reconstruction_fid": value})
    assert figure_4_points(run) == ([], ["reconstruction_fid"])


def test_the_command(make_run, tmp_path, caplog):
    """One run that has the numbers and one that has not."""
    measured = {"reconstruction_fid": 0.75, "sample_fid": 1.5, "evaluated_guidance_scale": 5.0}
    run, other = make_run("a", measured, "bit"), make_run("b", {})
    with caplog.at_level(logging.INFO, "bar_jax"):
        printed = _figures(tmp_path / "figures", run, other)
    assert [(p["run"], p["x"], p["y"]) for p in printed["figure_4_points"]] == [(run, 8192, 0.75)]
    assert [(p["head"], p["x"], p["y"]) for p in printed["figure_6_points"]] == [
        ("", 32, 0.75),
        ("bit", 32, 1.5),
    ]
    left_out = f"figure_4: left out of {other}, it has no reconstruction_fid"
    assert left_out in caplog.messages
    for name in ("figure_4.png", "figure_6.png"):
        assert Image.open(tmp_path / "figures" / name).format == "PNG"


def test_a_folder_without_a_summary(tmp_path, capsys):
    arguments = [f"--config={CONFIG}", f"--workdir={tmp_path}", "--config.job=figures"]
    assert main(["main", *arguments, f"--config.figures.runs={tmp_path / 'none'}"]) == 2
    error = capsys.readouterr().err
    assert f"figures.runs: found no {tmp_path / 'none' / 'summary.json'}, expected" in error


def test_samples_without_a_fid(make_run):
    run = make_run("a", {"evaluated_guidance_scale": 5.0})
    assert figure_6_points(run) == ([], ["reconstruction_fid", "sample_fid"])


def test_a_damaged_summary_is_named(make_run):
    run = make_run("a", {})
    Path(run, "summary.json").write_text("{")
    with pytest.raises(InputError, match="summary.json: found an unreadable file"):
        figure_4_points(run)


def test_psnr_is_drawn_of_runs_that_have_it(make_run, tmp_path):
    """32 bits by 256 tokens; a run that has none is left out, and without any there is no file."""
    run = make_run("a", {"reconstruction_psnr": 25.0})
    assert psnr_points(run) == ([Point(run, "reconstruction_psnr", "", 8192, 25.0)], [])
    other = make_run("b", {"reconstruction_fid": 1.0})
    summary = _figures(tmp_path / "both", run, other)
    assert [point["y"] for point in summary["psnr_points"]] == [25.0]
    assert Image.open(tmp_path / "both" / "psnr.png").size == (1200, 800)
    assert "psnr_points" not in _figures(tmp_path / "none", other)
    assert not (tmp_path / "none" / "psnr.png").exists()


# --- the basis paper's Figure 7 ------------------------------------------------------------------


def _log(run, *lines):
    text = "".join(json.dumps({"stage": "train_generator", **line}) + "\n" for line in lines)
    Path(run, "metrics.jsonl").write_text(text)


def test_fid_over_training_is_drawn_of_the_runs_that_have_it(make_run, tmp_path):
    runs = [make_run(name, {"reconstruction_psnr": 25.0}) for name in "abc"]
    _log(runs[0], {"step": 1, "loss": 2.0}, {"step": 2, "fid": 9.5}, {"step": 4, "fid": 7.0})
    _log(runs[1], {"step": 2, "classifier_fid": 0.5})
    assert convergence(runs) == ("fid", {runs[0]: [(2, 9.5), (4, 7.0)]})
    assert convergence(runs[1:]) == ("classifier_fid", {runs[1]: [(2, 0.5)]})
    assert convergence(runs[2:]) == ("", {})
    _figures(tmp_path / "figures", *runs)
    with Image.open(tmp_path / "figures/convergence.png") as picture:
        assert min(picture.size) > 300


def test_a_log_that_cannot_be_read_is_named(make_run):
    run = make_run("a", {})
    Path(run, "metrics.jsonl").write_text("{\n")
    with pytest.raises(InputError, match=r"metrics.jsonl: found an unreadable line"):
        convergence([run])
