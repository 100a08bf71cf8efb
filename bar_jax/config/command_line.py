"""The command line: flags of absl, `--config` and `--config.FIELD` those of ml_collections.

What absl and ml_collections refuse ends in one line as every mistake does, before JAX has started.
Beyond them an override may stand before `--config`, tuples of text need no quotes, and the last of
two values counts for them too.
"""

import ast
import difflib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from bar_jax.config import file
from bar_jax.config.declaration import TYPES, Field
from bar_jax.config.derived import unknown_field
from bar_jax.config.fields import FIELDS
from bar_jax.runtime import distributed
from bar_jax.runtime.errors import InputError


class Command(NamedTuple):
    """What a command line says.

    Attributes:
      config: with the line's fields; also `flag_values.config`.
      cluster: the processes that flags describe; None without them.
      by_hand: fields that the user has set, on the line or in the config file.
    """

    config: ConfigDict
    cluster: distributed.Cluster | None
    by_hand: list[str]


def define(flag_values: flags.FlagValues, argv: Sequence[str] | None = None) -> None:
    """Defines the flags.

    Args:
      argv: in which ml_collections looks for `--config.FIELD`, behind `--config`.
    """
    config_flags.DEFINE_config_file(
        "config", help_string="A config file, also FILE.py:tiny. --config.FIELD=VALUE changes it.",
        flag_values=flag_values, sys_argv=argv,
    )  # fmt: skip
    flags.DEFINE_string("workdir", "", "Folder for all that is written.", flag_values=flag_values)
    help_string = "HOST:PORT of process 0, where processes do not find each other."
    flags.DEFINE_string("coordinator", None, help_string, flag_values=flag_values)
    flags.DEFINE_integer("num_processes", None, "How many there are.", flag_values=flag_values)
    flags.DEFINE_integer("process_id", None, "Which one this is.", flag_values=flag_values)


def help_text() -> str:
    """The flags and what they are."""
    flag_values = flags.FlagValues()
    define(flag_values)
    return flag_values.get_help()


def parse(argv: Sequence[str], flag_values: flags.FlagValues | None = None) -> Command:
    """What a command line says; `--flag=value` and `--flag value` are the same.

    Args:
      argv: the program's name and its arguments.
      flag_values: where the flags are defined: absl's `FLAGS`, for a program around this one. By
        default a set of its own, so that nothing is left behind.

    Raises:
      InputError: an unknown flag, file or field, or a value of the wrong type.
    """
    try:
        return _parse(list(argv), flags.FlagValues() if flag_values is None else flag_values)
    except flags.UnrecognizedFlagError as error:
        raise _unknown_flag(error.flagname) from error
    except (flags.Error, ValueError) as error:
        known = error if isinstance(error, InputError) else error.__context__
        if isinstance(known, InputError):  # of a parser below, within an IllegalFlagValueError
            raise known from None
        lacking = re.fullmatch("Missing value for flag (.*)", str(error))
        if lacking:
            raise InputError(lacking[1], "no value", f"{lacking[1]}=VALUE") from error
        found = str(error).removeprefix("ERROR:: ")
        raise InputError("command line", found, "--config.FIELD=VALUE") from error


def _parse(argv: list[str], flag_values: flags.FlagValues) -> Command:
    program, *arguments = flag_values.read_flags_from_files(argv)
    path, arguments = _without_config(arguments)
    in_order = [program, f"--config={path}", *arguments]
    define(flag_values, in_order)
    for name in ("workdir", *distributed.Cluster._fields):
        flag = flag_values[name]
        expected = TYPES[int] if flag.flag_type() == "int" else TYPES[str]
        flag.parser = _Parser(
            flag=f"--{name}", name=f"--{name}", expected=expected, inner=flag.parser.parse
        )
    if not path:
        unknown = flag_values([program, *arguments], known_only=True)[1:]
        for name in filter(None, map(_flag_name, unknown)):
            if not name.startswith(("config.", "noconfig.")):
                raise _unknown_flag(name)
        raise InputError("--config", "nothing", "a file, such as configs/quickstart.py")
    _check_fields(arguments)
    by_file = _load(flag_values, in_order[:2])
    left = flag_values([program, *arguments])[1:]
    if left:
        raise InputError("command line", repr(left[0]), "--config.FIELD=VALUE")
    config = flag_values.config
    config.workdir = flag_values.workdir or config.workdir
    by_hand = list(dict.fromkeys([*flag_values["config"].override_values, *by_file]))
    cluster = (flag_values[name].value for name in distributed.Cluster._fields)
    return Command(config, distributed.from_flags(*cluster), by_hand)


def _without_config(arguments: list[str]) -> tuple[str, list[str]]:
    """The value of `--config`, the last one of several, and all other arguments."""
    config = flags.FlagValues()
    config.set_gnu_getopt(True)  # looks behind the VALUE of `--config.FIELD VALUE`
    flags.DEFINE_string("config", "", "", flag_values=config)
    _, *rest = config(["", *arguments], known_only=True)
    return config.config, rest


def _check_fields(arguments: list[str]) -> None:
    """Names a field that does not exist; ml_collections would name the deepest section alone."""
    for name in filter(None, map(_flag_name, arguments)):
        override, dot, field = name.removeprefix("no").partition(".")
        if override == "config" and dot and field not in FIELDS:
            raise unknown_field(field)


def _load(flag_values: flags.FlagValues, argv: list[str]) -> list[str]:
    """Reads the config file, which defines a flag for each of the line's fields.

    Returns:
      the fields that the file sets itself.
    """
    by_file = []

    def load(path: str) -> ConfigDict:
        config, own = file.read(path)
        by_file.extend(own)
        return config

    flag = flag_values["config"]
    flag.parser = _Parser(flag="--config", name="--config", expected="a file", inner=load)
    flag_values(argv)
    for name, field in FIELDS.items():
        if f"config.{name}" in flag_values:
            flag = flag_values[f"config.{name}"]
            inner = _last_tuple(flag, field) if field.type is tuple else flag.parser.parse
            flag.parser = _Parser(
                flag=f"--config.{name}", name=f"config.{name}", expected=TYPES[field.type],
                inner=inner,
            )  # fmt: skip
    return by_file


class _Parser(flags.ArgumentParser):
    """A parser whose errors are InputErrors.

    Args:
      flag: what it parses, as the user writes it.
      name: what the message names.
      expected: what else the value should be.
      inner: makes the value of a text.
    """

    def __init__(self, *, flag: str, name: str, expected: str, inner: Callable):
        self._flag, self._name, self._expected, self._inner = flag, name, expected, inner

    def parse(self, argument):
        if isinstance(argument, str) and argument.startswith("--"):  # the next flag
            raise InputError(self._flag, "no value", f"{self._flag}=VALUE")
        try:
            return self._inner(argument)
        except InputError:
            raise
        except (ValueError, TypeError, SyntaxError) as error:
            raise InputError(self._name, repr(argument), self._expected) from error


def _last_tuple(flag: flags.MultiFlag, field: Field) -> Callable[[str], tuple]:
    """Parses a tuple; the last of several values counts, which ml_collections would join."""

    def parse(text: str) -> tuple:
        flag.present = 0
        return _tuple(text, field.of is str)

    return parse


def _tuple(text: str, texts: bool) -> tuple:
    """The values of `(3, 7)`, `[3, 7]`, `3,7` and `3`; texts need no quotes.

    Raises:
      ValueError, SyntaxError: brackets or numbers that are none.
    """
    if texts and text[:1] in ("(", "[") and not set("'\"") & set(text):
        text = text[1:-1].rstrip(",") if text[-1] in ")]" else text
    if text[:1] in ("(", "[") or (not texts and text[:1] in tuple("-0123456789")):
        value = ast.literal_eval(text)
        return tuple(value) if isinstance(value, tuple | list) else (value,)
    return tuple(part.strip() for part in text.split(",")) if text else ()


def _flag_name(argument: str) -> str:
    """The name of a flag; empty for a value."""
    found = re.match(r"--?([a-zA-Z][\w.]*)", argument)
    return found[1] if found else ""


def _unknown_flag(name: str) -> InputError:
    """The error for a flag that does not exist, with the closest one that does."""
    known = ("config", "workdir", *distributed.Cluster._fields)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean --{close[0]}?" if close else ""
    expected = f"--config, --workdir, --config.FIELD{hint}"
    return InputError(f"--{name}", "no such flag", expected)
