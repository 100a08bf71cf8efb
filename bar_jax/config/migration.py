"""Configs that older versions stored, in today's fields.

A step knows one age: what was so then, though no field said it, and what was called otherwise. A
field that a stored config lacks and of which no step knows is new: it has its default. One that
there no longer is says nothing.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict

from bar_jax.config.derived import flatten
from bar_jax.config.fields import FIELDS, default_config


def migrated(stored: Mapping) -> dict[str, object]:
    """A stored `config.json` by today's names.

    Args:
      stored: as it was read, with a dictionary for each section.

    Returns:
      Dotted name -> value as JSON has it; fields that are newer than it are lacking.
    """
    fields = dict(flatten(ConfigDict(stored)))
    for step in STEPS:
        fields = step(fields)
    return {name: value for name, value in fields.items() if name in FIELDS}


def restored(stored: Mapping) -> ConfigDict:
    """The config that a stored `config.json` stands for, with the defaults of what is newer."""
    config = default_config()
    config.update_from_flattened_dict(
        {
            name: tuple(value) if FIELDS[name].type is tuple else value
            for name, value in migrated(stored).items()
        }
    )
    return config


def _encoders_of_one_kind(fields: dict) -> dict:
    """Before encoders had a kind (2026-11-22): a ViT from scratch, trained by pixels alone."""
    if "model.tokenizer.encoder.kind" in fields:
        return fields
    losses = ("lpips", "convnext", "gram", "alignment", "gan")
    then = {
        "model.tokenizer.encoder.kind": "vit",
        "model.tokenizer.encoder.position_grid": 0,
        "model.tokenizer.decoder.predictor_width": 0,
        "train_tokenizer.encoder_learning_rate": 1.0,
        **{f"train_tokenizer.loss.{loss}": 0.0 for loss in losses},
    }
    return then | fields


def _orders_without_a_basis(fields: dict) -> dict:
    """Before there were bases (2026-11-22): the order of sampling was called raster."""
    if fields.get("sample.order") == "raster":
        return fields | {"sample.order": "basis"}
    return fields


STEPS = (_encoders_of_one_kind, _orders_without_a_basis)  # oldest first
