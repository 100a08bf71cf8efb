"""Every field of a run (fields.py), and what follows from a config's fields."""

from bar_jax.config.derived import (
    DURATION_UNITS,
    basis_inside,
    bits_per_token,
    computed_in,
    duration,
    flatten,
    profiled_steps,
    real_valued,
    settle,
    token_channels,
    token_grid,
    unknown_field,
)
from bar_jax.config.fields import FIELDS, default_config

__all__ = [
    "DURATION_UNITS",
    "FIELDS",
    "basis_inside",
    "bits_per_token",
    "computed_in",
    "default_config",
    "duration",
    "flatten",
    "profiled_steps",
    "real_valued",
    "settle",
    "token_channels",
    "token_grid",
    "unknown_field",
]
