"""The feed-forward networks: gated by SiLU, gated by GELU, and plain GELU."""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta

from bar_jax.nn.linear import NORMAL_02, Init, linear


def swiglu_width(width: int) -> int:
    """Hidden units of a SwiGLU with the parameters of a 4x MLP: int(2/3 * 4 * width)."""
    return int(2 / 3 * 4 * width)


def _hidden_units(module: nn.Module, first: str, width: int) -> int:
    """Those that the layer `first` has: more of them if laid out for decoding (`nn.decoding`)."""
    if not module.has_variable("params", first):
        return swiglu_width(width)
    return meta.unbox(module.get_variable("params", first))["bias"].shape[-1]


class SwiGLU(nn.Module):
    """Linear(SiLU(gate) * value) with gate and value from one product (Shazeer 2020)."""

    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]; with a dropout rng, dropout acts on the hidden units."""
        width = x.shape[-1]
        hidden = _hidden_units(self, "up", width)
        gate_value = linear((2, hidden), ("embed", None, "mlp"), dtype=self.dtype, name="up")(x)
        x = nn.silu(gate_value[..., 0, :]) * gate_value[..., 1, :]
        x = nn.Dropout(self.dropout)(x, deterministic=not self.has_rng("dropout"))
        return linear(width, ("mlp", "embed"), dtype=self.dtype, name="down")(x)


class GatedGeluMLP(nn.Module):
    """Linear(GELU(gate) * value) with the exact GELU; the hidden units of a SwiGLU."""

    dropout: float = 0.0
    kernel_init: Init = NORMAL_02
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]; with a dropout rng, dropout acts on the hidden units."""
        dense = functools.partial(linear, kernel_init=self.kernel_init, dtype=self.dtype)
        width = x.shape[-1]
        hidden = _hidden_units(self, "gate", width)
        # Two layers, and not one product, so that each starts in its own Xavier range.
        gate = nn.gelu(dense(hidden, ("embed", "mlp"), name="gate")(x), approximate=False)
        x = gate * dense(hidden, ("embed", "mlp"), name="value")(x)
        x = nn.Dropout(self.dropout)(x, deterministic=not self.has_rng("dropout"))
        return dense(width, ("mlp", "embed"), name="down")(x)


Gelu = Literal["exact", "tanh", "quick"]
GELU = {
    "exact": functools.partial(nn.gelu, approximate=False),
    "tanh": functools.partial(nn.gelu, approximate=True),
    "quick": lambda x: x * nn.sigmoid(1.702 * x),
}


class GeluMLP(nn.Module):
    """Linear(GELU(Linear)).

    With a dropout rng, dropout acts on the hidden units and on the output.

    Attributes:
      hidden: units between the two layers.
      gelu: `exact`, or one of the approximations of Hendrycks & Gimpel 2016: `tanh`, or `quick`,
        x sigmoid(1.702 x).
    """

    hidden: int
    gelu: Gelu = "exact"
    dropout: float = 0.0
    kernel_init: Init = NORMAL_02
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        dense = functools.partial(linear, kernel_init=self.kernel_init, dtype=self.dtype)
        width = x.shape[-1]
        drop = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))
        x = drop(GELU[self.gelu](dense(self.hidden, ("embed", "mlp"), name="up")(x)))
        return drop(dense(width, ("mlp", "embed"), name="down")(x))
