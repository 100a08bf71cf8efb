"""Resizing of images as frozen networks saw it in their training.

All modes but `bilinear_tf1` take half-pixel centres. Each is separable: one matrix per axis, in
float32.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Modes that jax.image has: method, and whether it averages over what it skips when shrinking.
IN_JAX = {"bilinear": ("linear", False), "bicubic_antialiased": ("cubic", True)}


def resize(images: jax.Array, size: int | tuple[int, int], mode: str) -> jax.Array:
    """Images [B, H, W, C] -> [B, *size, C] float32.

    Args:
      size: rows and columns, or both.
      mode:
        `bilinear`: four neighbours, also when shrinking;
        `bicubic_antialiased`: Keys' kernel with a = -0.5, widened when shrinking;
        `bicubic_8bit`: the same for images in [0, 255], rounded and clipped to whole numbers after
          each axis, the columns first (what Pillow does to 8-bit images, to 1 in 255; from
          version 13 on it may take the rows of an oblong first);
        `bicubic`: a = -0.75, sixteen neighbours also when shrinking, borders repeated (PyTorch's);
        `bilinear_tf1`: output pixel i lies at i n / size, its neighbours are the one there and the
          next (TensorFlow 1's default, with corners not aligned);
        `area`: mean of the pixels that an output pixel touches.
    """
    images = images.astype(jnp.float32)
    size = (size, size) if isinstance(size, int) else size
    if mode in IN_JAX:
        method, antialias = IN_JAX[mode]
        shape = (images.shape[0], *size, images.shape[-1])
        return jax.image.resize(images, shape, method, antialias=antialias)
    sides = zip(images.shape[1:3], size, strict=True)
    rows, columns = (jnp.asarray(WEIGHTS[mode](n, side), jnp.float32) for n, side in sides)
    highest = jax.lax.Precision.HIGHEST
    if mode == "bicubic_8bit":
        images = _to_8_bits(jnp.einsum("jw,bhwc->bhjc", columns, images, precision=highest))
        return _to_8_bits(jnp.einsum("ih,bhwc->biwc", rows, images, precision=highest))
    return jnp.einsum("ih,bhwc,jw->bijc", rows, images, columns, precision=highest)


def _to_8_bits(images: jax.Array) -> jax.Array:
    """Halves are rounded up, as Pillow's integers are; float32 may have put them just below."""
    return jnp.clip(jnp.floor(images + 0.5 + 2**-17), 0, 255)


def bicubic_weights(n: int, size: int, step: float | None = None) -> np.ndarray:
    """Mode `bicubic` along one axis, [size, n] float64.

    Args:
      n, size: pixels before and after.
      step: between output pixels, in pixels of the input; None: n / size.
    """
    centre = (np.arange(size) + 0.5) * (n / size if step is None else step) - 0.5
    weights = np.zeros((size, n))
    for tap in (-1, 0, 1, 2):
        pixel = np.floor(centre).astype(int) + tap
        # Beyond a border stands the border's pixel.
        place = np.arange(size), np.clip(pixel, 0, n - 1)
        np.add.at(weights, place, _keys(centre - pixel, -0.75))
    return weights


def _bicubic_8bit_weights(n: int, size: int) -> np.ndarray:
    """[size, n] float64, to 22 binary digits as Pillow has them: ties fall as they do there."""
    centre = (np.arange(size)[:, None] + 0.5) * n / size - 0.5
    weights = _keys((np.arange(n)[None] - centre) / max(n / size, 1), -0.5)
    weights /= weights.sum(1, keepdims=True)
    return np.round(weights * 2**22) / 2**22


def _keys(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel at these distances; 0 from 2 on."""
    x = np.minimum(np.abs(x), 2)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, far)


def _bilinear_tf1_weights(n: int, size: int) -> np.ndarray:
    """[size, n] float32: TensorFlow computes the places in it, and their rounding is felt."""
    place = np.arange(size, dtype=np.float32) * (np.float32(n) / np.float32(size))
    low = place.astype(int)
    fraction = place - low.astype(np.float32)
    weights = np.zeros((size, n), np.float32)
    for pixel, weight in ((low, 1 - fraction), (np.minimum(low + 1, n - 1), fraction)):
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
    "bicubic": bicubic_weights,
    "bicubic_8bit": _bicubic_8bit_weights,
    "bilinear_tf1": _bilinear_tf1_weights,
    "area": _area_weights,
}
