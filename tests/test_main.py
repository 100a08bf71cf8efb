"""Tests of bar_jax/main.py: the command line, and a user's mistakes that end in one line."""

import errno
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bar_jax.config import flatten
from bar_jax.config.file import load_config
from bar_jax.main import main, parse
from bar_jax.runtime import preemption, workdir
from bar_jax.runtime.errors import InputError, NonFinite, SaveError
from tests import running

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = str(ROOT / "configs/quickstart.py")
TINY = f"--config={QUICKSTART}:tiny"


def replace_job(monkeypatch, name, run):
    """Has a job do something else."""
    from bar_jax import jobs

    monkeypatch.setitem(jobs.JOBS, name, jobs.JOBS[name]._replace(run=run))


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    """Fails where a refused command would have started its job."""
    from bar_jax import jobs

    for name in jobs.JOBS:
        replace_job(monkeypatch, name, lambda config: pytest.fail("the job was started"))


def _refused(capsys, *arguments) -> str:
    """The one line that a command ends in, without `error: `."""
    assert main(["main", *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    [line] = printed.err.splitlines()
    return line.removeprefix("error: ")


# --- what is understood --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argument, field, value",
    [
        ("--config.seed=3", "seed", 3),
        ("--config.model.generator.depth=4", "model.generator.depth", 4),
        ("--config.sample.temperature=2", "sample.temperature", 2.0),
        ("--config.train_generator.ema_decay=1e-2", "train_generator.ema_decay", 0.01),
        ("--config.data.mirror=true", "data.mirror", True),
        ("--config.data.mirror=False", "data.mirror", False),
        ("--config.data.path=/a/b=c:d", "data.path", "/a/b=c:d"),
        ("--config.data.path=", "data.path", ""),
        ("--config.sample.labels=3", "sample.labels", (3,)),
        ("--config.sample.labels=3,7", "sample.labels", (3, 7)),
        ("--config.sample.labels=(3, 7)", "sample.labels", (3, 7)),
        ("--config.sample.labels=[3]", "sample.labels", (3,)),
        ("--config.sample.labels=()", "sample.labels", ()),
        ("--config.evaluate.metrics=class_accuracy", "evaluate.metrics", ("class_accuracy",)),
        ("--config.evaluate.metrics=('a', 'b')", "evaluate.metrics", ("a", "b")),
        ("--config.figures.runs=2024_run,2025", "figures.runs", ("2024_run", "2025")),
        ("--config.figures.runs=(2024_run, 7)", "figures.runs", ("2024_run", "7")),
        ("--config.figures.runs=('a,b',)", "figures.runs", ("a,b",)),
        ("--config.figures.runs=", "figures.runs", ()),
        ("-config.seed=3", "seed", 3),
    ],
)
def test_override(argument, field, value):
    found = dict(flatten(parse(["main", TINY, "--workdir=x", argument])))[field]
    assert (found, type(found)) == (value, type(value))


def test_the_last_of_two_values_counts():
    assert parse(["main", TINY, "--workdir=x", "--config.seed=1", "--config.seed=2"]).seed == 2


def test_values_may_be_arguments_of_their_own():
    argv = ["main", "--config", f"{QUICKSTART}:tiny", "--workdir", "x", "--config.seed", "5"]
    assert parse(argv) == parse(["main", TINY, "--workdir=x", "--config.seed=5"])


def test_overrides_may_stand_before_the_config():
    assert parse(["main", "--config.seed=5", "--workdir=x", TINY]).seed == 5


@pytest.mark.parametrize("argument", ["configs/quickstart.py", "configs/quickstart.py:tiny"])
def test_configs_are_found_from_anywhere(argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(argument) == load_config(str(ROOT / argument))


def test_a_colon_may_belong_to_the_path(tmp_path):
    folder = tmp_path / "C:"
    folder.mkdir()
    (folder / "mine.py").write_text(Path(QUICKSTART).read_text())
    assert load_config(f"{folder}/mine.py") == load_config(QUICKSTART)


def test_help_is_no_mistake(capsys):
    status = main(["main", "--help"])
    assert (status, "--config.FIELD=VALUE" in capsys.readouterr().out) == (0, True)


def test_what_is_set_by_hand_and_changes_nothing_is_named(monkeypatch, caplog, capsys):

    replace_job(monkeypatch, "describe", lambda config: {})
    arguments = ("--config.job=describe", "--config.sample.clip=1.0", "--config.seed=1")
    assert main(["main", TINY, *arguments]) == 0
    assert caplog.messages == [
        "without effect in this run: sample.clip (acts with model.head.kind=diffusion)"
    ]


# --- what is refused -----------------------------------------------------------------------------

# (arguments, the start of the message, what it must also say)
WRONG_FIELDS = [
    ("--config.sample.ordr=1", "config.sample.ordr: found no such field", "mean sample.order?"),
    ("--config.sampl.order=1", "config.sampl.order: found no such field", "mean sample.order?"),
    ("--config.model=3", "config.model: found no such field", "a field of"),
    ("--config.seed.x=3", "config.seed.x: found no such field", "did you mean seed?"),
    ("--wrkdir=x", "--wrkdir: found no such flag", "did you mean --workdir?"),
    ("--confg.seed=1", "--confg.seed: found no such flag", "did you mean --config?"),
    ("--num_process=2", "--num_process: found no such flag", "did you mean --num_processes?"),
    ("--process_id=0", "--coordinator: found nothing, beside --process_id", "all three"),
    ("stray", "command line: found 'stray'", "--config.FIELD=VALUE"),
    ("--config.seed", "--config.seed: found no value", "--config.seed=VALUE"),
    ("--config.seed=abc", "config.seed: found 'abc'", "an integer"),
    ("--config.seed=1.5", "config.seed: found '1.5'", "an integer"),
    ("--config.seed=-1", "seed: found -1", "from 0 to 2^32 - 1"),
    ("--config.sample.temperature=hot", "config.sample.temperature: found 'hot'", "a number"),
    ("--config.sample.temperature=-1", "sample.temperature: found -1.0", "at least 0"),
    ("--config.sample.temperature=nan", "sample.temperature: found nan", "at least 0"),
    ("--config.data.mirror=maybe", "config.data.mirror: found 'maybe'", "true or false"),
    ("--config.sample.labels=(3", "config.sample.labels: found '(3'", "(VALUE, ...)"),
    ("--config.sample.labels=(11,)", "sample.labels: found 11", "integers from 0 to 9"),
    ("--config.sample.labels=cat", "sample.labels: found 'cat'", "integers from 0 to 9"),
    (
        "--config.sample.unmasking_schedule=(2,2,5,6)",
        "sample.unmasking_schedule: found (2, 2, 5, 6), which sums to 15",
        "sum to 16 bits",
    ),
    (
        "--config.sample.unmasking_schedule=(7,5,2,2)",
        "sample.unmasking_schedule: found (7, 5, 2, 2), which sums to 16",
        "non-decreasing",
    ),
    (
        "--config.model.generator.heads=3",
        "model.generator.heads: found 3 heads at width 16",
        "divides the width",
    ),
    (
        "--config.model.generator.patch_size=3",
        "model.generator.patch_size: found 3",
        "a divisor of the tokenizer's grid, 4 x 4",
    ),
    (
        "--config.train_generator.epochs=3",
        "train_generator.steps: found steps=2, epochs=3.0",
        "the others 0",
    ),
    ("--config.mesh.data=0", "mesh: found data=0, fsdp=1, tensor=1", "positive sizes"),
    ("--config.mesh.data=3", "mesh: found data=3, fsdp=1, tensor=1", "8 devices"),
    (
        "--config.train_generator.batch_size=12",
        "train_generator.batch_size: found 12",
        "a multiple of 8, for 8 ways (mesh.data x mesh.fsdp)",
    ),
    (
        "--config.train_generator.accumulate=4",
        "train_generator.batch_size: found 16",
        "a multiple of 32, for 8 ways (mesh.data x mesh.fsdp) x 4 pieces",
    ),
    ("--config.job=trian", "job: found 'trian'", "pipeline | train_tokenizer | encode"),
]


@pytest.mark.parametrize("argument, start, rest", WRONG_FIELDS, ids=[w[0] for w in WRONG_FIELDS])
def test_a_wrong_argument_ends_in_one_line(argument, start, rest, tmp_path, capsys):
    folder = tmp_path / "run"
    line = _refused(capsys, TINY, f"--workdir={folder}", argument)
    assert line.startswith(f"{start}, expected ") and rest in line
    assert not folder.exists()


WRONG_FILES = {
    "broken.py": ("def get_config(:\n", "found SyntaxError: invalid syntax"),
    "other.py": ("x = 1\n", "found KeyError: 'get_config'"),
    "imports.py": ("import no_such_module\n", "found ModuleNotFoundError: No module named"),
    "returns.py": ("def get_config(size):\n    return {}\n", "found get_config() -> dict"),
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_file_that_is_no_config_is_named(name, tmp_path, capsys):
    text, found = WRONG_FILES[name]
    (tmp_path / name).write_text(text)
    line = _refused(capsys, f"--config={tmp_path / name}", f"--workdir={tmp_path / 'run'}")
    assert line.startswith(f"{tmp_path / name}: {found}")


def test_a_misspelt_field_in_a_config_file(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "from bar_jax.config import default_config\n"
        "def get_config(size=None):\n"
        "    config = default_config()\n"
        "    config.model.generator.update(dict(wdth=8))\n"
        "    return config\n"
    )
    line = _refused(capsys, f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}")
    assert line == (
        "config.model.generator.wdth: found no such field,"
        " expected a field of bar_jax/config; did you mean model.generator.width?"
    )


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--workdir=x"], "--config: found nothing, expected a file, such as"),
        (["--config=", "--workdir=x"], "--config: found nothing, expected a file, such as"),
        ([TINY], "--workdir: found nothing, expected a folder for all that the job writes"),
        (["--config"], "--config: found no value, expected --config=VALUE"),
        (["--config=configs/quickstrt.py", "--workdir=x"], "'configs/quickstrt.py': found no such"),
        (["--config", "configs/nope.py", "--workdir=x"], "'configs/nope.py': found no such file"),
        (["--config=C:\\x\\y.py", "--workdir=x"], "'C:\\\\x\\\\y.py': found no such file"),
        (["--config=configs", "--workdir=x"], "configs: found ImportError"),
        ([f"--config={QUICKSTART}:huge", "--workdir=x"], "--config=...:huge: found 'huge'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_missing_flags_and_files(arguments, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    assert _refused(capsys, *arguments).startswith(line)


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_workdir_that_cannot_be_one(name, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    line = _refused(capsys, TINY, f"--workdir={tmp_path / name}")
    assert line.startswith(f"--workdir: found {tmp_path / name} (")


def test_a_workdir_with_another_run_in_it(tmp_path, capsys, monkeypatch):
    from bar_jax.runtime import workdir_lock

    def refuse(*_):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(workdir_lock.fcntl, "lockf", refuse)
    line = _refused(capsys, TINY, f"--workdir={tmp_path}")
    assert line.startswith(f"--workdir: found {tmp_path} in use by another run, expected one run")
    assert not (tmp_path / "config.json").exists()


def test_a_damaged_summary_is_refused_before_training(tmp_path, capsys):
    (tmp_path / "summary.json").write_text("{")
    line = _refused(capsys, TINY, f"--workdir={tmp_path}")
    assert line.startswith(f"{tmp_path / 'summary.json'}: found an unreadable file")


# --- a workdir that was begun with another config ------------------------------------------------


@pytest.fixture
def begun(tmp_path):
    """A workdir in which both parts were begun."""
    config = parse(["main", TINY, f"--workdir={tmp_path}"])
    workdir.write_config(config)
    for part in ("tokenizer", "generator"):
        (workdir.begin_training(config, part) / "1").mkdir()  # a checkpoint, as far as it matters
    return tmp_path


@pytest.mark.parametrize(
    "part, arguments, found, expected",
    [
        ("tokenizer", ["--config.model.tokenizer.bits=8",
                       "--config.sample.unmasking_schedule=(4,4)"],
         "model.tokenizer.bits: found 8", "16"),
        ("tokenizer", ["--config.seed=1"], "seed: found 1", "0"),
        ("tokenizer", ["--config.train_tokenizer.steps=3"], "train_tokenizer.steps: found 3", "2"),
        ("generator", ["--config.model.generator.depth=3"], "model.generator.depth: found 3", "2"),
        ("generator", ["--config.train_generator.batch_size=32"],
         "train_generator.batch_size: found 32", "16"),
        ("generator", ["--config.job=sample", "--config.data.num_classes=11"],
         "data.num_classes: found 11", "10"),
    ],
)  # fmt: skip
def test_what_cannot_change_is_refused(part, arguments, found, expected, begun, capsys):
    """Before anything is trained or written: the workdir's config.json stays what it was."""
    before = (begun / "config.json").read_bytes()
    line = _refused(capsys, TINY, f"--workdir={begun}", *arguments)
    told = f"{found}, expected {expected}, with which {begun / part} was begun; or another workdir"
    assert (line, (begun / "config.json").read_bytes()) == (told, before)


@pytest.mark.parametrize(
    "argument",
    [
        "--config.train_generator.log_every=7",
        "--config.train_generator.save_minutes=0",
        "--config.train_tokenizer.keep_checkpoints=1",
        "--config.sample.temperature=1.0",
        "--config.data.num_workers=1",
    ],
)
def test_what_may_change_is_taken(argument, begun):
    workdir.check(parse(["main", TINY, f"--workdir={begun}", argument]))


def test_a_weight_file_may_move_but_not_become_another(begun):
    field = "train_tokenizer.weights.vgg16"
    check = lambda path: workdir.check(  # noqa: E731
        parse(["main", TINY, f"--workdir={begun}", f"--config.{field}={path}"])
    )
    stored = json.loads((begun / "tokenizer/config.json").read_text())
    stored["train_tokenizer"]["weights"]["vgg16"] = "old/vgg16.pth"
    (begun / "tokenizer/config.json").write_text(json.dumps(stored))
    check("new/vgg16.pth")
    with pytest.raises(InputError, match=f"{field}: found random, expected old/vgg16.pth"):
        check("random")


def test_a_finished_tokenizer_is_used_whatever_trained_it(begun):
    """In a pipeline; what it is may not differ, nor may its training go on or be asked for."""
    workdir.finish_training(begun / "tokenizer", 1)
    changes = ["--config.train_tokenizer.stage=decoder_finetune", "--config.init_from=runs/other"]
    check = lambda *more: workdir.check(parse(["main", TINY, f"--workdir={begun}", *more]))  # noqa: E731
    check(*changes)
    check("--config.job=sample", "--config.model.tokenizer.encoder.kind=siglip2")
    with pytest.raises(InputError, match="^train_tokenizer.stage: found decoder_finetune, expec"):
        check(*changes, "--config.job=train_tokenizer")
    with pytest.raises(InputError, match="^model.tokenizer.patch_size: found 2, expected 4"):
        check("--config.model.tokenizer.patch_size=2")
    (begun / "tokenizer/1").rename(begun / "tokenizer/2")  # not the step that was the last
    with pytest.raises(InputError, match="^train_tokenizer.stage: found decoder_finetune, expec"):
        check(*changes)


def test_without_a_checkpoint_all_may_change(begun):
    """A run that was cut off early, or refused, must not hold on to its config."""
    (begun / "tokenizer/1").rmdir()
    changed = parse(["main", TINY, f"--workdir={begun}", "--config.train_tokenizer.steps=3"])
    workdir.check(changed)
    folder = workdir.begin_training(changed, "tokenizer")
    assert json.loads((folder / "config.json").read_text())["train_tokenizer"]["steps"] == 3


def test_a_damaged_stored_config_is_named(begun, capsys):
    (begun / "tokenizer/config.json").write_text("")
    line = _refused(capsys, TINY, f"--workdir={begun}")
    assert line.startswith(f"{begun / 'tokenizer/config.json'}: found an unreadable file")


def test_no_part_was_trained(tmp_path):
    config = parse(["main", TINY, f"--workdir={tmp_path}"])
    with pytest.raises(InputError, match="generator: found no trained model"):
        workdir.trained(config, "generator")


# --- the real thing ------------------------------------------------------------------------------


FULL = errno.ENOSPC, "No space left on device"


@pytest.mark.parametrize(
    "error, line",
    [
        (SaveError("runs/a: a checkpoint could not be saved"), "runs/a: a checkpoint could not"),
        (OSError(*FULL, "runs/a/file"), "runs/a/file: No space left on device"),
        (OSError(*FULL), "WORKDIR: No space left on device"),
    ],
    ids=["checkpoint", "file", "unnamed"],
)
def test_a_full_disk_ends_in_one_line(error, line, failing_job, tmp_path, capsys):
    """With the path; the status says that the same command may go on, with room again."""
    assert main(failing_job(error)) == 1
    [told] = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error: ")]
    assert told.startswith("error: " + line.replace("WORKDIR", str(tmp_path)))


def test_a_loss_that_is_not_finite_ends_in_one_line(failing_job, capsys):
    assert main(failing_job(NonFinite("train_generator: loss became nan"))) == 1
    assert capsys.readouterr().err.endswith("error: train_generator: loss became nan\n")


@pytest.fixture
def interrupted(monkeypatch):
    """A job that Ctrl-C is pressed in; what asks is told."""

    def job(config):
        os.kill(os.getpid(), signal.SIGINT)
        preemption.check("3 shards are kept")

    for name in ("encode", "describe"):
        replace_job(monkeypatch, name, job)
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.default_int_handler) for number in signals]
    yield
    for number, handler in zip(signals, before, strict=True):
        signal.signal(number, handler)


def test_ctrl_c_is_answered_like_sigterm(interrupted, tmp_path, capsys, caplog):
    """The work is saved; line and status say how to go on. Afterwards Ctrl-C is Python's again."""
    assert main(["main", TINY, "--config.job=encode", f"--workdir={tmp_path}"]) == 75
    told = "told to stop; 3 shards are kept. The same command goes on from there."
    assert told in caplog.messages and capsys.readouterr().out == ""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_ends_a_job_that_saves_nothing(interrupted, capsys):
    """At once, in one line."""
    assert main(["main", TINY, "--config.job=describe"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_the_command_in_another_thread(monkeypatch, tmp_path):
    """Python lets the main thread alone wait for signals."""

    replace_job(monkeypatch, "encode", lambda config: {})
    arguments = ["main", TINY, "--config.job=encode", f"--workdir={tmp_path}"]
    with ThreadPoolExecutor() as pool:
        assert pool.submit(main, arguments).result() == 0


def test_home_is_not_made_a_folder_of_the_name_tilde(monkeypatch, tmp_path):

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = {}
    replace_job(monkeypatch, "encode", lambda config: found.update(flatten(config)) or {})
    paths = ("init_from", "data.path", "evaluate.reference", "evaluate.weights.inception",
             "train_tokenizer.weights.vgg16", "published.export", "figures.runs")  # fmt: skip
    arguments = [f"--config.{name}=~/a" for name in paths]
    assert main(["main", TINY, "--config.job=encode", "--workdir=~/run", *arguments]) == 0
    expected = {name: f"{tmp_path}/a" for name in paths} | {"figures.runs": (f"{tmp_path}/a",)}
    assert {name: found[name] for name in paths} == expected
    assert (tmp_path / "run/config.json").exists() and not (tmp_path / "~").exists()


def test_another_error_of_the_system_keeps_its_traceback(failing_job):
    with pytest.raises(ConnectionResetError):
        main(failing_job(OSError(errno.ECONNRESET, "Connection reset by peer")))


@pytest.fixture
def failing_job(monkeypatch, tmp_path):
    """Makes the arguments of a job that raises an error."""

    def arguments(error):
        def job(config):
            raise error

        replace_job(monkeypatch, "encode", job)
        return ["main", TINY, "--config.job=encode", f"--workdir={tmp_path}"]

    return arguments


def test_the_command_on_an_empty_folder(tmp_path):
    """Status 2, one line, no traceback, nothing trained."""
    (tmp_path / "images/cat").mkdir(parents=True)
    command = [sys.executable, "-m", "bar_jax.main", TINY, f"--workdir={tmp_path / 'run'}"]
    command += ["--config.data.source=folder", f"--config.data.path={tmp_path / 'images'}"]
    command += ["--config.data.train_split=", "--config.data.validation_split="]
    done = subprocess.run(
        command, cwd=ROOT, env=running.environment(), capture_output=True, text=True
    )
    line = (
        f"error: data.path: found no images in the 1 class folders of {tmp_path / 'images'},"
        " expected files that Pillow can read, such as .jpg or .png\n"
    )
    assert (done.returncode, done.stderr, done.stdout) == (2, line, "")
    assert not list(tmp_path.glob("run/tokenizer/*/"))
