"""The table of all fields, for users."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from bar_jax.config.declaration import Field
from bar_jax.config.fields import FIELDS

WIDTH = 100  # columns
ROW = "{:<58} {:<19} {:<30} {}"  # the longest name and what may be affected


def field_table(kinds: Mapping[str, Sequence[str]]) -> str:
    """All fields: name, what they affect, default with its unit, what they take; their meaning.

    Args:
      kinds: names of fields whose choices are the parts of a room -> these.
    """
    lines = [ROW.format("field", "affects", "default", "takes")]
    for name, field in FIELDS.items():
        takes = " | ".join(kinds[name]) if name in kinds else _takes(field)
        lines += [ROW.format(name, str(field.affects), _default(field), takes), *_meanings(field)]
    return "\n".join(lines)


def _default(field: Field) -> str:
    value = field.default
    text = '""' if value == "" else str(value).replace("'", "")
    return f"{text} {field.unit}".rstrip()


def _takes(field: Field) -> str:
    takes = "a path" if field.path else field.expected()
    return f"({takes}, ...)" if field.type is tuple else takes


def _meanings(field: Field) -> Iterator[str]:
    """Its own, and that of each choice which has one."""
    meanings = [field.meaning] if field.meaning else []
    if isinstance(field.choices, Mapping):
        meanings += [f"{choice}: {meaning}" for choice, meaning in field.choices.items() if meaning]
    for meaning in meanings:
        yield from textwrap.wrap(meaning, WIDTH, initial_indent="    ", subsequent_indent="    ")
