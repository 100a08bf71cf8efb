"""The same function on the accelerator and on the CPU, and how far the results are apart."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np


class Setting(NamedTuple):
    """Where the checks run.

    Attributes:
      device: the accelerator.
      other: a device of the CPU.
      options: compiler options of what runs on `other`.
      tiny: whether models are as small as can be.
    """

    device: jax.Device
    other: jax.Device
    options: dict[str, object]
    tiny: bool


def on(device: jax.Device, options: dict, function: Callable, *args) -> object:
    """What a jitted function returns on a device, as numpy arrays."""
    with jax.default_device(device):
        compiled = jax.jit(function, compiler_options=options)
        return jax.device_get(compiled(*jax.device_put(args, device)))


def both(setting: Setting, function: Callable, *args) -> tuple[object, object]:
    """The same on the accelerator and on the CPU."""
    here = on(setting.device, {}, function, *args)
    return here, on(setting.other, setting.options, function, *args)


def distance(found: object, wanted: object) -> float:
    """|found - wanted| / |wanted| of all numbers of two trees together; nan where they have one."""
    flat = lambda tree: np.concatenate(
        [np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)]
    )
    found, wanted = flat(found), flat(wanted)
    return float(np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-30))


def judged(**errors: tuple[float, float]) -> dict[str, object]:
    """Errors with their tolerances; nan is no number to be right with."""
    return {
        "ok": all(bool(error <= tolerance) for error, tolerance in errors.values()),
        "error": {name: float(f"{error:.3g}") for name, (error, _) in errors.items()},
        "tolerance": {name: tolerance for name, (_, tolerance) in errors.items()},
    }
