"""Embedding of a diffusion time."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bar_jax.nn.linear import NORMAL_02, Init, linear
from bar_jax.runtime.mesh import constrain_batch

MAX_PERIOD = 10_000.0
TIME_STEPS = 1000  # a network gets times in [0, 1] in thousandths


def time_index(time: jax.Array) -> jax.Array:
    """Times in [0, 1] as the network gets them: float32, in thousandths, cut off."""
    return jnp.trunc(jnp.asarray(time, jnp.float32) * jnp.float32(TIME_STEPS)).astype(jnp.int32)


def sinusoidal(index: jax.Array, size: int = 256) -> jax.Array:
    """[...] -> [..., size] float32: cosines, then sines, of index * MAX_PERIOD^(-2k / size)."""
    half = size // 2
    # In float32, as published: at an index of 999 the angles differ from float64's by 1e-4.
    frequencies = np.exp(np.float32(-np.log(MAX_PERIOD)) * np.arange(half, dtype=np.float32) / half)
    angles = jnp.multiply.outer(jnp.asarray(index, jnp.float32), frequencies)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbedding(nn.Module):
    """Linear(SiLU(Linear(sinusoids))) of a time's index."""

    width: int
    kernel_init: Init = NORMAL_02
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, index: jax.Array) -> jax.Array:
        """Times of 0 to 1000 [...] -> [..., width]."""
        x = sinusoidal(index).astype(self.dtype)
        options = dict(kernel_init=self.kernel_init, dtype=self.dtype)
        # The kernel is cut along the hidden units: without the constraint the compiler cuts what it
        # gives so too, and sends that to and fro.
        x = constrain_batch(linear(self.width, (None, "embed"), name="first", **options)(x))
        x = nn.silu(x)
        return linear(self.width, ("embed", None), name="second", **options)(x)
