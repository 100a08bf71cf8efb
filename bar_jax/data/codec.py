"""Images to tokens and back with a tokenizer's module and parameters, in one jitted call each."""

import functools

import flax.linen as nn
import jax

from bar_jax.data.images import to_float, to_uint8
from bar_jax.runtime.mesh import constrain_batch


@functools.partial(jax.jit, static_argnums=0)
def tokens(tokenizer: nn.Module, params: dict, images: jax.Array) -> jax.Array:
    """Images uint8 [B, H, W, 3] -> what is cached of them, [B, N, K].

    Bits {0, 1} uint8 of BAR-FSQ, moments float32 of KL-16, values uint8 of pixels.
    """
    codes = tokenizer.apply({"params": params}, to_float(images), method=tokenizer.encode)
    return constrain_batch(codes)


@functools.partial(jax.jit, static_argnums=0)
def latents(tokenizer: nn.Module, params: dict, images: jax.Array) -> jax.Array:
    """Images uint8 [B, H, W, 3] -> what generators model, [B, N, d], without noise."""
    return tokenizer.latents(tokens(tokenizer, params, images))


@functools.partial(jax.jit, static_argnums=0)
def pixels(tokenizer: nn.Module, params: dict, tokens: jax.Array) -> jax.Array:
    """Tokens [B, N, k], bits {0, 1} or real numbers -> images uint8 [B, H, W, 3]."""
    images = tokenizer.apply({"params": params}, tokens, method=tokenizer.decode)
    return to_uint8(images)
