"""Grids of images, enlarged to a visible size."""

import io
import math
import os

import numpy as np
from PIL import Image

from bar_jax.runtime.files import write_atomically

CELL = 64  # pixels: smaller images are enlarged to at least this, by a whole factor
GAP = 2  # pixels between cells
BACKGROUND = 255

GRID_ROWS, GRID_COLUMNS = 10, 10


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Puts images into rows of `columns`: uint8 [B, H, W, 3] -> [H', W', 3]."""
    factor = max(1, math.ceil(CELL / images.shape[1]))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, _ = images.shape
    rows = math.ceil(count / columns)
    shape = (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3)
    grid = np.full(shape, BACKGROUND, np.uint8)
    for i, image in enumerate(images):
        y, x = GAP + i // columns * (height + GAP), GAP + i % columns * (width + GAP)
        grid[y : y + height, x : x + width] = image
    return grid


def save_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes uint8 [H, W, 3] as PNG, whole or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def class_grid(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A picture with a row for each of the first classes, uint8 [H', W', 3]."""
    classes = np.unique(labels)[:GRID_ROWS]
    rows = [images[labels == label][:GRID_COLUMNS] for label in classes]
    columns = max(map(len, rows))
    blank = np.full((columns, *images.shape[1:]), 255, np.uint8)
    return image_grid(np.concatenate([np.concatenate([r, blank[len(r) :]]) for r in rows]), columns)
