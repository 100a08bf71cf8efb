"""Tests of bar_jax/config/command_line.py: what is absl's and ml_collections', and what is added.

What a wrong line ends in is in tests/test_main.py.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from bar_jax.config import flatten
from bar_jax.config.command_line import parse
from bar_jax.runtime.distributed import Cluster
from bar_jax.runtime.errors import InputError

ROOT = Path(__file__).parents[2]
TINY = f"--config={ROOT}/configs/quickstart.py:tiny"


def _parse(*arguments, flag_values=None):
    return parse(["main", *arguments], flag_values)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--config.data.mirror"], True),
        (["--config.data.mirror=t"], True),
        (["--noconfig.data.mirror"], False),
        (["--config.data.mirror", "--noconfig.data.mirror"], False),
        (["-noconfig.data.mirror"], False),
    ],
)
def test_booleans_need_no_value(arguments, expected):
    assert _parse(TINY, *arguments).config.data.mirror is expected


@pytest.mark.parametrize(
    "field, text, expected",
    [
        ("sample.labels", "3,7", (3, 7)),
        ("sample.labels", "(3,)", (3,)),
        ("sample.labels", "", ()),
        ("evaluate.metrics", "fid,kid", ("fid", "kid")),
        ("evaluate.metrics", "fid", ("fid",)),
        ("evaluate.metrics", "(fid, kid)", ("fid", "kid")),
        ("evaluate.metrics", "('fid', \"kid\")", ("fid", "kid")),
        ("evaluate.metrics", "()", ()),
        ("figures.runs", "007,1e3", ("007", "1e3")),
    ],
)
@pytest.mark.parametrize("separator", ["=", None])
def test_tuples(field, text, expected, separator):
    flag = f"--config.{field}"
    arguments = [f"{flag}={text}"] if separator else [flag, text]
    assert dict(flatten(_parse(*arguments, TINY).config))[field] == expected


@pytest.mark.parametrize("last, expected", [("kid,sfid", ("kid", "sfid")), ("", ())])
def test_the_last_of_two_tuples_counts(last, expected):
    flag = "--config.evaluate.metrics="
    assert _parse(TINY, f"{flag}fid", f"{flag}{last}").config.evaluate.metrics == expected


def test_a_file_of_flags(tmp_path):
    (tmp_path / "flags").write_text("# mine\n--config.seed=7\n--noconfig.data.mirror\n")
    config = _parse(f"--flagfile={tmp_path}/flags", TINY, "--config.sample.labels=2").config
    assert (config.seed, config.data.mirror, config.sample.labels) == (7, False, (2,))


def test_a_negative_number_is_a_value():
    assert _parse(TINY, "--config.mesh.data", "-1", "--config.seed=2").config.seed == 2


def test_the_last_config_counts():
    other = f"--config={ROOT}/configs/folder.py"
    assert _parse("--config.seed=3", other, TINY).config == _parse(TINY, "--config.seed=3").config


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--confg=x"], "--confg: found no such flag, .* did you mean --config"),
        ([TINY, "--config.data.mirror", "false"], "command line: found 'false', expected"),
        ([TINY, "--noconfig.seed"], "--noconfig.seed: found no such flag"),
        ([TINY, "--noconfig.data.mirorr"], "config.data.mirorr: .* did you mean data.mirror"),
        ([TINY, "--noconfig.data.mirror=1"], "command line: .* does not take an argument"),
        ([TINY, "--workdir", "--config.seed=3"], "--workdir: found no value"),
        ([TINY, "--config.data.path", "--config.seed=3"], "--config.data.path: found no value"),
        ([TINY, "--flagfile=nowhere"], "command line: found Unable to open flagfile"),
        ([TINY, "--num_processes=two"], "--num_processes: found 'two', expected an integer"),
        ([TINY, "--", "--config.seed=1"], "command line: found '--config.seed=1', expected"),
    ],
)
def test_what_is_refused(arguments, line):
    with pytest.raises(InputError, match=f"^{line}"):
        _parse(*arguments)


def test_flags_of_a_cluster():
    arguments = ("--coordinator=node1:12355", "--num_processes", "4", "--process_id=3")
    assert _parse(TINY, *arguments).cluster == Cluster("node1:12355", 4, 3)
    assert _parse(TINY).cluster is None


FILE = """
import pathlib
from bar_jax.config import default_config
with open(pathlib.Path(__file__).with_name("runs"), "a") as file:
    file.write("run ")
def get_config(size=None):
    config = default_config()
    config.model.generator.cell_size = 3
    config.train_generator.steps = 7 if size else 0
    return config
"""


@pytest.mark.parametrize("size", ["", ":small"])
def test_a_config_file_runs_once(size, tmp_path):
    """Also to find out what is set by hand: on the line, or by the file, not by its size."""
    (tmp_path / "own.py").write_text(FILE)
    command = _parse("--config.seed=1", f"--config={tmp_path}/own.py{size}")
    assert (tmp_path / "runs").read_text() == "run "
    assert command.by_hand == ["seed", "model.generator.cell_size"]
    assert command.config.train_generator.steps == (7 if size else 0)


def test_a_config_file_that_knows_no_size(tmp_path):
    (tmp_path / "own.py").write_text(FILE.replace("size=None", "").replace("7 if size else", ""))
    assert _parse(f"--config={tmp_path}/own.py").config.model.generator.cell_size == 3
    with pytest.raises(InputError, match="own.py: found TypeError"):
        _parse(f"--config={tmp_path}/own.py:tiny")


def test_flags_of_a_program_around_this_one():
    """Its set of flags has the config, and its own flags may stand beside."""
    own = flags.FlagValues()
    flags.DEFINE_string("user", "", "", flag_values=own)
    command = _parse(TINY, "--user=me", "--config.seed=4", flag_values=own)
    assert own.config is command.config
    assert (own.user, own.config.seed, own["config"].override_values) == ("me", 4, {"seed": 4})


def test_nothing_is_left_behind():
    _parse(TINY, "--config.seed=4", "--config.evaluate.metrics=kid")
    assert _parse(TINY).config.seed == 0
    assert not {"config", "workdir", "config.seed"} & set(flags.FLAGS)


def test_a_wrong_line_is_refused_before_jax_is_imported():
    line = ["main", TINY, "--workdir=x", "--config.sede=3"]
    script = f"import sys\nfrom bar_jax.main import main\nprint(main({line}), 'jax' in sys.modules)"
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, capture_output=True, cwd=ROOT).stdout == b"2 False\n"
