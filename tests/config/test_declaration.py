"""Tests of bar_jax/config/declaration.py: what one field takes, and how that is said."""

import math

import pytest

from bar_jax.config.declaration import Affects, Field
from bar_jax.runtime.errors import InputError

N = Affects.NOTHING
COUNT = Field(3, N, least=1)
SIZE = Field(0.5, N, least=0)
SHARE = Field(0.5, N, least=0, below=1)
POSITIVE = Field(1.0, N, above=0)
ENDLESS = Field(1.0, N, above=0, most=math.inf)
FROM_1_TO_99 = Field(5, N, least=1, most=99)
SEED = Field(0, N, least=0, most=2**32 - 1)
CHOICE = Field("a", N, choices={"a": "the first", "b": ""})
NAMES = Field(("a",), N, choices=("a", "b"), of=str)
COUNTS = Field((), N, least=1, of=int)


@pytest.mark.parametrize(
    "field, values",
    [
        (COUNT, [1, 10**12]),
        (SIZE, [0.0, 3, 3e38]),
        (SHARE, [0.0, 0.999]),
        (POSITIVE, [1e-30]),
        (ENDLESS, [1e-30, math.inf]),
        (FROM_1_TO_99, [1, 99]),
        (SEED, [0, 2**32 - 1]),
        (CHOICE, ["a", "b"]),
        (NAMES, [(), ("b", "a")]),
        (COUNTS, [(), (1, 2)]),
        (Field("", N), ["", "x"]),
        (Field(True, N), [False]),
        (Field(-1, N), [-5]),
    ],
)
def test_what_is_taken(field, values):
    for value in values:
        field.check("name", value)


@pytest.mark.parametrize(
    "field, value, found, expected",
    [
        (COUNT, 0, "0", "at least 1"),
        (COUNT, 1.0, "1.0", "at least 1"),
        (COUNT, True, "True", "at least 1"),
        (SIZE, -0.1, "-0.1", "a number of at least 0"),
        (SIZE, math.nan, "nan", "a number of at least 0"),
        (SIZE, math.inf, "inf", "a number of at least 0"),
        (SIZE, 1e39, "1e+39", "a number of at least 0"),  # infinite in float32
        (SIZE, False, "False", "a number of at least 0"),
        (SHARE, 1.0, "1.0", "a number in [0, 1)"),
        (SHARE, math.nan, "nan", "a number in [0, 1)"),
        (POSITIVE, 0.0, "0.0", "a positive number"),
        (POSITIVE, math.inf, "inf", "a positive number"),
        (ENDLESS, 0.0, "0.0", "a positive number"),
        (FROM_1_TO_99, 100, "100", "an integer from 1 to 99"),
        (SEED, 2**32, "4294967296", "an integer from 0 to 2^32 - 1"),
        (CHOICE, "c", "'c'", "a | b"),
        (CHOICE, 1, "1", "a | b"),
        (NAMES, ("a", "c"), "'c'", "a | b"),
        (NAMES, "a", "'a'", "(VALUE, ...)"),
        (COUNTS, (1, 0), "0", "at least 1"),
        (COUNTS, (1.5,), "1.5", "at least 1"),
        (Field("", N), 3, "3", "text"),
        (Field(True, N), 1, "1", "true or false"),
        (Field(-1, N), 0.5, "0.5", "an integer"),
    ],
)
def test_what_is_refused(field, value, found, expected):
    with pytest.raises(InputError) as error:
        field.check("name", value)
    assert str(error.value) == f"name: found {found}, expected {expected}"


@pytest.mark.parametrize(
    "affects, words",
    [
        (Affects.NOTHING, "nothing"),
        (Affects.BASIS, "model"),
        (Affects.TOKENIZER | Affects.GENERATOR, "model"),
        (Affects.GENERATOR | Affects.TOKENIZER_TRAINING, "model, training"),
        (Affects.GENERATOR_TRAINING | Affects.SAMPLING, "training, sampling"),
        (Affects.EVALUATION, "evaluation"),
        (Affects.START, "start"),
    ],
)
def test_what_a_field_affects_in_words(affects, words):
    assert str(affects) == words
