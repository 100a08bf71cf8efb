"""Linear layers and tables whose parameters carry logical axis names."""

import functools
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from bar_jax.nn import narrow
from bar_jax.nn.decoding import OUTPUT_FIRST, SCALE, TILES
from bar_jax.runtime.mesh import cut_by_batch, gathered_kernel

Init = Callable[..., jax.Array]

NORMAL_02: Init = nn.initializers.normal(0.02)  # masked-bit paper's published initialisation
XAVIER: Init = nn.initializers.xavier_uniform()  # of what MAR and xAR publish


def named(init: Init, *axes: str | None) -> Init:
    """An initialiser whose array carries logical axis names (see `bar_jax.runtime.mesh`)."""
    return nn.with_logical_partitioning(init, axes)


def uniform(limit: float) -> Init:
    """Uniform in +-limit; fan_in^-0.5 is how PyTorch's layers start by default."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


class Linear(nn.DenseGeneral):
    """A linear layer that also takes its parameters laid out for decoding (see `nn.decoding`)."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., *in] -> [..., *out]."""
        given = {
            name: self.get_variable("params", name)
            for name in (OUTPUT_FIRST, TILES, SCALE)
            if self.has_variable("params", name)
        }
        if not given:
            return _apart(super().__call__(x))
        bias = self.get_variable("params", "bias")
        lead = x.shape[: x.ndim - len(self.axis)]
        x = x.astype(self.dtype)
        if TILES in given:
            rows = x.reshape(math.prod(lead), -1)
            out = narrow.multiply(rows, given[TILES], bias.size)
        elif OUTPUT_FIRST in given:
            kernel = given[OUTPUT_FIRST].astype(self.dtype)
            rows = x.reshape(-1, kernel.shape[1])
            # The barrier keeps XLA from turning the product around: rows first is the slow way.
            out = jax.lax.optimization_barrier(kernel @ rows.T).T
        else:
            kernel = self.get_variable("params", "kernel").astype(self.dtype)
            inputs = tuple(range(len(lead), x.ndim)), tuple(range(len(self.axis)))
            out = self.dot_general(x, kernel, (inputs, ((), ())))
        out = out.reshape(*lead, *bias.shape)
        along = (1,) * len(lead) + bias.shape
        if SCALE in given:
            out = out * given[SCALE].reshape(along)
        return out.astype(self.dtype) + bias.reshape(along)


def linear(
    features: int | Sequence[int],
    axes: Sequence[str | None],
    *,
    inputs: int = 1,
    kernel_init: Init = NORMAL_02,
    bias_init: Init = nn.initializers.zeros,
    dtype: jnp.dtype = jnp.float32,
    name: str | None = None,
) -> Linear:
    """Linear layer over the last `inputs` axes, with bias.

    Args:
      features: size of each output axis.
      axes: logical names of the kernel's axes, inputs first: `("embed", "mlp")`.
      inputs: how many trailing axes are contracted.
      dtype: what is computed in; parameters are float32.
    """
    return Linear(
        features,
        axis=tuple(range(-inputs, 0)),
        dtype=dtype,
        kernel_init=named(kernel_init, *axes),
        bias_init=named(bias_init, *axes[inputs:]),
        dot_general=functools.partial(_product, tuple(axes)),
        name=name,
    )


def _product(axes, x: jax.Array, kernel: jax.Array, *how, **options) -> jax.Array:
    """`jax.lax.dot_general`: where rows are cut over devices, kernels come to them."""
    if cut_by_batch(x):
        kernel = gathered_kernel(kernel, axes)
    return jax.lax.dot_general(x, kernel, *how, **options)


@jax.custom_vjp
def _apart(x: jax.Array) -> jax.Array:
    """x, whose cotangent is in memory before anything is computed from it.

    A layer's three gradients read it: the bias's is a sum over all rows, which XLA for GPUs would
    join with what makes the cotangent, in a kernel that does neither well.
    """
    return x


_apart.defvjp(lambda x: (x, None), lambda _, ct: (jax.lax.optimization_barrier(ct),))


def lookup(table: jax.Array, index: jax.Array) -> jax.Array:
    """Rows of a table of a few: [K, C] and integers [...] -> [..., C].

    The gradient of an indexed table adds row after row to the same few places: on an H200 that
    took three quarters of BAR-B's training step. That of a choice is a sum.

    Args:
      index: 0 to K - 1; what is larger counts as K - 1, what is smaller as 0.
    """
    rows = table.reshape(table.shape[0], *(1,) * index.ndim, -1)
    chosen = jnp.broadcast_to(rows[-1], (*index.shape, table.shape[1]))
    for k in reversed(range(table.shape[0] - 1)):
        chosen = jnp.where(index[..., None] <= k, rows[k], chosen)
    return chosen
