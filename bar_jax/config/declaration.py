"""What is declared of a field of the config."""

import dataclasses
import enum
import numbers
from collections.abc import Collection

from bar_jax.runtime.errors import InputError

LIMIT = 2.0**128  # where float32 ends
TYPES = {int: "an integer", float: "a number", bool: "true or false", tuple: "(VALUE, ...)"}
TYPES[str] = "text"


class Affects(enum.Flag):
    """What changes with a field; the guard of a workdir follows from it (runtime/workdir.py)."""

    NOTHING = 0  # no number: where things lie, what is shown and saved when, memory, speed
    TOKENIZER = enum.auto()  # what the tokenizer is: cannot change once there is a checkpoint
    BASIS = enum.auto()  # what the basis is; inside a tokenizer it is a part of it
    GENERATOR = enum.auto()
    TOKENIZER_TRAINING = enum.auto()  # how it is trained: cannot change when its training goes on
    BASIS_TRAINING = enum.auto()
    GENERATOR_TRAINING = enum.auto()
    START = enum.auto()  # which weights there are at first; read once
    SAMPLING = enum.auto()  # what a trained model makes: tokens, images, reconstructions
    EVALUATION = enum.auto()  # what is measured

    MODEL = TOKENIZER | BASIS | GENERATOR
    TRAINING = TOKENIZER_TRAINING | BASIS_TRAINING | GENERATOR_TRAINING

    def __str__(self) -> str:
        """For users: a field's name says which part it belongs to."""
        groups = (Affects.MODEL, Affects.TRAINING, Affects.START, Affects.SAMPLING)
        named = [group.name.lower() for group in (*groups, Affects.EVALUATION) if self & group]
        return ", ".join(named) or "nothing"


# Short names, for the page.
NOTHING, START = Affects.NOTHING, Affects.START
TOKENIZER, BASIS, GENERATOR = Affects.TOKENIZER, Affects.BASIS, Affects.GENERATOR
OF_TOKENIZER, OF_GENERATOR = Affects.TOKENIZER_TRAINING, Affects.GENERATOR_TRAINING
OF_BASIS, OF_BOTH = Affects.BASIS_TRAINING, OF_TOKENIZER | OF_GENERATOR  # training of both parts
SAMPLING, EVALUATION = Affects.SAMPLING, Affects.EVALUATION

COUNT, SIZE, SHARE = dict(least=1), dict(least=0), dict(least=0, below=1)
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Field:
    """One field: all that is known of it without the others.

    Attributes:
      default: its value, which also says its type.
      affects: what changes with it.
      meaning: for users; what follows the name of a choice there is in `choices`.
      unit: of its numbers.
      choices: its values, or those of its elements; a dictionary says what each of them means.
      least, most: its range, both included; of a tuple, its elements'.
      above, below: the same, not included. A number without an upper end is below 2^128.
      path: whether it is a path (each element of a tuple).
      of: type of a tuple's elements.
    """

    default: object
    affects: Affects
    meaning: str = ""
    unit: str = ""
    choices: Collection[str] = ()
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    path: bool = False
    of: type | None = None

    @property
    def type(self) -> type:
        return type(self.default)

    def expected(self) -> str:
        """What a value has to be, in words; also for the table of fields."""
        if self.choices:
            return " | ".join(self.choices)
        kind = self.of or self.type
        if self.least is None and self.above is None:
            return TYPES[kind]
        if kind is int:
            if self.most is None:
                return f"at least {self.least}"
            large = self.most > 2**16
            most = f"2^{(self.most + 1).bit_length() - 1} - 1" if large else self.most
            return f"an integer from {self.least} to {most}"
        if self.below is not None:
            return f"a number in [{self.least}, {self.below})"
        return "a positive number" if self.above == 0 else f"a number of at least {self.least}"

    def check(self, name: str, value: object) -> None:
        """Checks the type, choice and range of a value, of a tuple those of its elements.

        Raises:
          InputError: naming the field, what was found and what was expected.
        """
        if self.type is tuple and not isinstance(value, tuple):
            raise InputError(name, repr(value), TYPES[tuple])
        kind = self.of or self.type
        for each in value if self.type is tuple else (value,):
            if not _is_of(kind, each) or not self._in_range(each):
                raise InputError(name, repr(each), self.expected())

    def _in_range(self, value) -> bool:
        if self.choices:
            return value in self.choices
        if self.least is None and self.above is None:
            return True
        above = value >= self.least if self.above is None else value > self.above
        if self.most is not None:
            return above and value <= self.most
        return above and value < (LIMIT if self.below is None else self.below)


def _is_of(kind: type, value: object) -> bool:
    if kind is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    return type(value) is kind
