"""Binary finite scalar quantisation (FSQ with two levels; Mentzer et al. 2024).

A token is k real numbers; each is bounded by a tanh and rounded to one of two codes, -1 or +1.
Codes are never turned into one integer (2^64 does not fit): the interface is bits.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from bar_jax.nn.linear import named, uniform

LEVELS = 2
EPS = 1e-3
HALF_WIDTH = (LEVELS - 1) * (1 + EPS) / 2  # 0.5005
SHIFT = math.atanh(0.5 / HALF_WIDTH)
BOUNDARY = -SHIFT  # -3.80: where the two levels meet, not at 0


def center(z: jax.Array) -> jax.Array:
    """Moves the place where the two levels meet from BOUNDARY to 0: z + 3.80, float32."""
    return z.astype(jnp.float32) + SHIFT


def bound(z: jax.Array) -> jax.Array:
    """Squeezes real numbers into (-1.0005, 0.0005); -0.5 is reached at z = BOUNDARY."""
    return jnp.tanh(center(z)) * HALF_WIDTH - 0.5


def quantize(z: jax.Array) -> jax.Array:
    """Codes {-1, +1} of real numbers [..., k], float32, with a straight-through gradient.

    The gradient is that of the bounded value: 2 * 0.5005 * sech^2(z + 3.80).
    """
    return quantize_centered(center(z))


def quantize_centered(z: jax.Array) -> jax.Array:
    """Codes {-1, +1}, the signs of what `center` gives; gradient as that of `quantize`."""
    bounded = jnp.tanh(z) * HALF_WIDTH - 0.5
    rounded = bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)
    return 2 * rounded + 1


def codes_to_bits(codes: jax.Array) -> jax.Array:
    """Codes {-1, +1} -> bits {0, 1} uint8, same shape."""
    return (codes > 0).astype(jnp.uint8)


def bits_to_codes(bits: jax.Array) -> jax.Array:
    """Bits {0, 1} -> codes {-1, +1} float32, same shape."""
    return 2 * bits.astype(jnp.float32) - 1


class Quantizer(nn.Module):
    """Linear to k channels, binary FSQ, linear to the decoder's width; all in float32.

    Both linear layers start uniform in +-fan_in^-0.5, as the published ones do.

    Attributes:
      bits: k, channels and bits of a token.
      inputs, outputs: widths of the encoder and of the decoder.
      centered: start with the bias at BOUNDARY, so that zeros and ones are balanced. Without it
        (the published recipe, for a pretrained encoder) every bit starts as one and its gradient
        as 1/500 of the largest.
    """

    bits: int
    inputs: int
    outputs: int
    centered: bool = False

    def setup(self):
        start = uniform(self.inputs**-0.5)
        self.in_proj = nn.Dense(
            self.bits,
            kernel_init=named(start, "embed", None),
            bias_init=nn.initializers.constant(BOUNDARY) if self.centered else start,
        )
        start = uniform(self.bits**-0.5)
        self.out_proj = nn.Dense(
            self.outputs, kernel_init=named(start, None, "embed"), bias_init=start
        )

    def project(self, features: jax.Array) -> jax.Array:
        """Features [B, N, inputs] -> centred latents [B, N, k] float32; signs are the codes."""
        return center(self.in_proj(features.astype(jnp.float32)))

    def __call__(self, features: jax.Array) -> jax.Array:
        """Features [B, N, inputs] -> codes {-1, +1} [B, N, k] float32 (straight-through)."""
        return quantize_centered(self.project(features))

    def expand(self, codes: jax.Array) -> jax.Array:
        """Codes [B, N, k] -> decoder input [B, N, outputs] float32."""
        return self.out_proj(codes)
