"""Linear layers and tables whose parameters carry logical axis names."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

Init = Callable[..., jax.Array]

NORMAL_02: Init = nn.initializers.normal(0.02)  # masked-bit paper's published initialisation


def named(init: Init, *axes: str | None) -> Init:
    """An initialiser whose array carries logical axis names (see `bar_jax.mesh`)."""
    return nn.with_logical_partitioning(init, axes)


def linear(
    features: int | Sequence[int],
    axes: Sequence[str | None],
    *,
    inputs: int = 1,
    kernel_init: Init = NORMAL_02,
    bias_init: Init = nn.initializers.zeros,
    dtype: jnp.dtype = jnp.float32,
    name: str | None = None,
) -> nn.DenseGeneral:
    """Linear layer over the last `inputs` axes, with bias.

    Args:
      features: size of each output axis.
      axes: logical names of the kernel's axes, inputs first: `("embed", "mlp")`.
      inputs: how many trailing axes are contracted.
      dtype: what is computed in; parameters are float32.
    """
    return nn.DenseGeneral(
        features,
        axis=tuple(range(-inputs, 0)),
        dtype=dtype,
        kernel_init=named(kernel_init, *axes),
        bias_init=named(bias_init, *axes[inputs:]),
        name=name,
    )
