"""Tests of bar_jax/config/table.py, and of the command that prints it."""

import subprocess
import sys
from pathlib import Path

from bar_jax.config import FIELDS
from bar_jax.config.table import field_table

ROOT = Path(__file__).parents[2]
ROWS = [line for line in field_table({}).splitlines()[1:] if not line.startswith(" ")]


def _block(name: str, kinds=None) -> list[list[str]]:
    """A field's row and the lines below it, cut at two spaces or more."""
    lines = field_table(kinds or {}).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{name} "))
    end = next((i for i in range(start + 1, len(lines)) if lines[i][0] != " "), len(lines))
    return [[part for part in line.split("  ") if part.strip()] for line in lines[start:end]]


def test_every_field_has_a_row():
    assert [row.split()[0] for row in ROWS] == list(FIELDS)


def test_a_row_says_all_that_is_declared():
    [[name, affects, default, takes], [meaning]] = _block("model.generator.class_repeats")
    assert name == "model.generator.class_repeats" and affects.strip() == "model"
    assert (default.strip(), takes.strip()) == ("32", "an integer from 1 to 99")
    assert meaning == "causal, mar: copies of the class embedding in front"


def test_units_choices_and_paths():
    row, *choices = _block("data.source")
    assert row[-1].strip() == "digits | folder | tfds | tokens"
    assert ["digits: scikit-learn's, bundled"] in choices
    assert [part.strip() for part in _block("data.image_size")[0][1:]] == [
        "model", "256 pixels", "at least 1"]  # fmt: skip
    assert _block("figures.runs")[0][-1].strip() == "(a path, ...)"
    assert _block("benchmark.batches")[0][-1].strip() == "(at least 1, ...)"


def test_kinds_come_from_their_rooms():
    kinds = {"model.head.kind": ("bit", "flow")}
    assert _block("model.head.kind", kinds)[0][-1].strip() == "bit | flow"


def test_the_command_prints_it_and_starts_no_jax():
    line = ["main", f"--config={ROOT}/configs/quickstart.py", "--config.job=describe"]
    line.append("--config.describe.fields=true")
    script = (
        "import sys\nfrom bar_jax.main import main\nstatus = main({})\n"
        "from jax._src import xla_bridge\nprint(status, xla_bridge.backends_are_initialized())"
    )
    command = [sys.executable, "-c", script.format(line)]
    printed = subprocess.run(command, capture_output=True, cwd=ROOT, text=True).stdout.splitlines()
    assert printed[0].split() == ["field", "affects", "default", "takes"]
    assert "bar_fsq | basis_fsq | kl_vae | pixels" in "\n".join(printed)
    assert printed[-1] == "0 False"
