"""Tokens that are given, not drawn (inpainting): of which images, and where."""

import collections
import itertools
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from bar_jax import data
from bar_jax.config import token_grid
from bar_jax.runtime.errors import InputError


class Given(NamedTuple):
    """Images of which tokens are kept.

    Attributes:
      images: uint8 [B, H, W, 3].
      mask: bool [B, N], True where a token of the image is kept.
    """

    images: np.ndarray
    mask: np.ndarray


def given_halves(config: ConfigDict, labels: np.ndarray) -> Given | None:
    """A validation image of each label's class, of which `sample.keep` names a half; None: none."""
    if config.sample.keep == "none":
        return None
    half = half_mask(token_grid(config), config.sample.keep)
    return Given(real_images(config, labels), np.tile(half, (len(labels), 1)))


def half_mask(grid: tuple[int, int], half: str) -> np.ndarray:
    """bool [N], True where a token of the grid lies in that half: upper | lower | left | right."""
    row, column = np.indices(grid)
    rows, columns = grid
    inside = {
        "upper": row < rows / 2,
        "lower": row >= rows / 2,
        "left": column < columns / 2,
        "right": column >= columns / 2,
    }
    return inside[half].reshape(-1)


def real_images(config: ConfigDict, labels: np.ndarray) -> np.ndarray:
    """A validation image of each label's class, each time another one while there are enough."""
    source = data.open_images(config, validation=True)
    wanted = collections.Counter(map(int, labels))
    found: dict[int, list] = {label: [] for label in wanted}
    batches = data.eval_batches(
        source,
        image_size=config.data.image_size,
        crop="center",
        batch_size=config.encode.batch_size,
        on_damaged=config.data.on_damaged,
    )
    for batch in batches:
        for i in np.flatnonzero(batch["mask"]):
            label = int(batch["label"][i])
            if len(found.get(label, ())) < wanted[label]:
                found[label].append(batch["image"][i])
    for label, images in found.items():
        if not images:
            raise InputError("sample.keep", f"no validation image of class {label}", "at least one")
    turns = {label: itertools.cycle(images) for label, images in found.items()}
    return np.stack([next(turns[int(label)]) for label in labels])
