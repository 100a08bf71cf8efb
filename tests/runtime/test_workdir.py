"""Tests of bar_jax/runtime/workdir.py: which fields hold once a part has a checkpoint.

pinned_fields.txt says it of every field: what may not differ from the checkpoint's when a part is
used (tokenizer, generator), what also may not when its training goes on (tokenizer-training, ...).
A basis counts as a part of whoever has it.
"""

from pathlib import Path

import pytest

from bar_jax.config import FIELDS, default_config
from bar_jax.runtime.workdir import pinned_by_model, pinned_by_training

LINES = Path(__file__).with_name("pinned_fields.txt").read_text().splitlines()
EXPECTED = {name: set(parts) - {"-"} for name, *parts in map(str.split, LINES)}


def test_every_field_is_decided():
    assert list(EXPECTED) == list(FIELDS)


@pytest.mark.parametrize("part", ["tokenizer", "generator"])
@pytest.mark.parametrize("kind", ["bar_fsq", "basis_fsq"])
def test_what_is_pinned(kind, part):
    config = default_config()
    config.model.tokenizer.kind = kind
    parts = {part}
    if part == "generator" or kind == "basis_fsq":
        parts.add("basis")
    model = [name for name, pinned in EXPECTED.items() if pinned & parts]
    parts |= {f"{each}-training" for each in parts}
    training = [name for name, pinned in EXPECTED.items() if pinned & parts]
    assert pinned_by_model(config, part) == model
    assert pinned_by_training(config, part) == training


def test_orders_that_are_not_drawn_may_change():
    config = default_config()
    drawn = set(pinned_by_training(config, "generator"))
    config.model.basis.kind = "raster"
    free = drawn - set(pinned_by_training(config, "generator"))
    assert free == {name for name in FIELDS if name.startswith("model.generator.order.")}
