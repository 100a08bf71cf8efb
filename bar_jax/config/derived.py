"""What follows from a config's fields: sizes, durations, and names of fields."""

import difflib
import math
import re

import ml_collections
import numpy as np
from ml_collections import ConfigDict

from bar_jax.config.fields import FIELDS
from bar_jax.runtime import files
from bar_jax.runtime.errors import InputError

DURATION_UNITS = ("steps", "epochs", "images")


def settle(config: ConfigDict) -> None:
    """Changes what may be written in several ways to one: paths with `~`, integers of numpy."""
    for name, value in flatten(config):
        is_path = FIELDS[name].path
        if isinstance(value, tuple):
            value = tuple(v.item() if isinstance(v, np.integer) else v for v in value)
            value = tuple(map(files.expand, value)) if is_path else value
        elif is_path:
            value = files.expand(value)
        config.update_from_flattened_dict({name: value})


def token_grid(config: ConfigDict) -> tuple[int, int]:
    """Rows and columns of the tokenizer's tokens (of basis_fsq, before the basis)."""
    return (config.data.image_size // config.model.tokenizer.patch_size,) * 2


def computed_in(config: ConfigDict, dtype: str) -> ConfigDict:
    """A copy of a config whose modules compute in `dtype`."""
    config = config.copy_and_resolve_references()
    config.dtype = dtype
    return config


def profiled_steps(text: str) -> range:
    """The steps that `config.profile` names: "10:15" are steps 10 to 14, "" are none.

    Raises:
      InputError: it is neither.
    """
    if not text:
        return range(0)
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise InputError("profile", repr(text), "FIRST:END, such as 10:15, or nothing")
    return range(int(match[1]), int(match[2]))


def duration(
    config: ConfigDict, field: str, batch_size: int, images: int, required: bool = True
) -> int:
    """Steps of a duration that is given in steps, epochs or images.

    Args:
      config: the section that holds FIELDsteps, FIELDepochs and FIELDimages.
      field: where it stands, for the message, and what its names start with:
        `train_generator.` or `train_generator.optimizer.warmup_`.
      batch_size: images of a step.
      images: images of an epoch.
      required: whether all three may be 0.
    """
    prefix = field.rpartition(".")[2]
    given = {unit: config[prefix + unit] for unit in DURATION_UNITS if config[prefix + unit]}
    expected = f"one of {', '.join(field + unit for unit in DURATION_UNITS)}, the others 0"
    possible = all(0 <= value < math.inf for value in given.values())
    if len(given) > 1 or not possible or (required and not given):
        found = ", ".join(f"{prefix}{unit}={value}" for unit, value in given.items())
        raise InputError(field + "steps", found or "no duration", expected)
    if not given:
        return 0
    [(unit, value)] = given.items()
    if unit == "steps":
        return value
    return max(1, round(value * (images if unit == "epochs" else 1) / batch_size))


def unknown_field(name: str) -> InputError:
    """The error for a field that does not exist, with the closest ones that do."""
    leaf = {field.rpartition(".")[2]: field for field in FIELDS}
    close = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.6) or [
        leaf[match] for match in difflib.get_close_matches(name.rpartition(".")[2], leaf, n=1)
    ]
    hint = f"; did you mean {close[0]}?" if close else ""
    return InputError(f"config.{name}", "no such field", f"a field of bar_jax/config{hint}")


def flatten(config: ConfigDict, prefix: str = "") -> list[tuple[str, object]]:
    """All fields as (dotted name, value)."""
    fields = []
    for name, value in config.items():
        nested = isinstance(value, ml_collections.ConfigDict)
        fields += flatten(value, f"{prefix}{name}.") if nested else [(prefix + name, value)]
    return fields
