"""What a job says of itself, at the end of its file."""

from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict


class Batch(NamedTuple):
    """A batch cut over the mesh: the field of its size, that size, and in how many pieces."""

    field: str
    size: int
    pieces: int = 1


class Job(NamedTuple):
    """A job.

    Attributes:
      run: config -> what is printed at the end; also `summary.json` where there is a workdir.
      batches: config -> the batches that it cuts over the mesh.
      draws_images: whether it samples.
      has_workdir: whether it writes anything.
      on_devices: whether it runs on the devices that are present.
    """

    run: Callable[[ConfigDict], dict[str, object]]
    batches: Callable[[ConfigDict], list[Batch]] = lambda config: []
    draws_images: bool = False
    has_workdir: bool = True
    on_devices: bool = True


def batches_of(*sections: str) -> Callable[[ConfigDict], list[Batch]]:
    """The batches of sections of the config."""
    return lambda config: [
        Batch(f"{name}.batch_size", config[name].batch_size, config[name].get("accumulate", 1))
        for name in sections
    ]
