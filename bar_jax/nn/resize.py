"""Resizing of images as frozen networks saw it when they were trained.

All modes but `bilinear_tf1` take half-pixel centres. Each is separable: one matrix per axis, float32
throughout.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Modes that jax.image has: method, and whether it averages over what it skips when shrinking.
IN_JAX = {"bilinear": ("linear", False), "bicubic_antialiased": ("cubic", True)}


def resize(images: jax.Array, size: int, mode: str) -> jax.Array:
    """Images [B, H, W, C] -> [B, size, size, C] float32.

    Args:
      mode:
        `bilinear`: four neighbours, also when shrinking;
        `bicubic_antialiased`: Keys' kernel with a = -0.5, widened when shrinking (Pillow's);
        `bicubic`: a = -0.75, sixteen neighbours also when shrinking, borders repeated (PyTorch's);
        `bilinear_tf1`: output pixel i lies at i n / size, its neighbours are the one there and the
          next (TensorFlow 1's default, with corners not aligned);
        `area`: mean of the pixels that an output pixel touches.
    """
    images = images.astype(jnp.float32)
    if mode in IN_JAX:
        method, antialias = IN_JAX[mode]
        shape = (images.shape[0], size, size, images.shape[-1])
        return jax.image.resize(images, shape, method, antialias=antialias)
    weights = WEIGHTS[mode]
    rows, columns = (jnp.asarray(weights(n, size), jnp.float32) for n in images.shape[1:3])
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("ih,bhwc,jw->bijc", rows, images, columns, precision=highest)


def _bicubic_weights(n: int, size: int, a: float = -0.75) -> np.ndarray:
    """[size, n] float64."""
    centre = (np.arange(size) + 0.5) * n / size - 0.5
    weights = np.zeros((size, n))
    for tap in (-1, 0, 1, 2):
        pixel = np.floor(centre).astype(int) + tap
        x = np.abs(centre - pixel)
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = a * (((x - 5) * x + 8) * x - 4)
        # Beyond a border stands the border's pixel.
        np.add.at(weights, (np.arange(size), np.clip(pixel, 0, n - 1)), np.where(x <= 1, near, far))
    return weights


def _bilinear_tf1_weights(n: int, size: int) -> np.ndarray:
    """[size, n] float32: TensorFlow computes the places in it, and their rounding is felt."""
    place = np.arange(size, dtype=np.float32) * (np.float32(n) / np.float32(size))
    low = place.astype(int)
    share = place - low.astype(np.float32)
    weights = np.zeros((size, n), np.float32)
    for pixel, weight in ((low, 1 - share), (np.minimum(low + 1, n - 1), share)):
        np.add.at(weights, (np.arange(size), pixel), weight)
    return weights


def _area_weights(n: int, size: int) -> np.ndarray:
    """[size, n] float64."""
    output, pixel = np.arange(size)[:, None], np.arange(n)[None]
    # Pixel p and output o meet where [p, p + 1) and [o n / size, (o + 1) n / size) do.
    touched = ((pixel + 1) * size > output * n) & (pixel * size < (output + 1) * n)
    return touched / touched.sum(1, keepdims=True)


# The modes that jax.image has not: the matrix of an axis.
WEIGHTS = {
    "bicubic": _bicubic_weights,
    "bilinear_tf1": _bilinear_tf1_weights,
    "area": _area_weights,
}
