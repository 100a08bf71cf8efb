"""Every field of a run (fields.py), and what follows from a config's fields."""

from bar_jax.config.derived import (
    DURATION_UNITS,
    computed_in,
    duration,
    flatten,
    profiled_steps,
    settle,
    token_grid,
    unknown_field,
)
from bar_jax.config.fields import FIELDS, default_config

__all__ = [
    "DURATION_UNITS",
    "FIELDS",
    "computed_in",
    "default_config",
    "duration",
    "flatten",
    "profiled_steps",
    "settle",
    "token_grid",
    "unknown_field",
]
