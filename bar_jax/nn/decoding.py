"""The layout of parameters for writing tokens one after another.

Training stacks the layers, so that 32 compile as fast as 2, and keeps kernels input-first.
A sampler reads every weight once per token for a handful of rows; what counts is how fast weights
stream from memory. So it takes the layers apart (a slice of a stack is a copy at every token),
casts them to the compute dtype once, and on CPU turns kernels output-first: there a product of 2
rows with such a kernel ran 2.5 times as fast, of 8 rows 5 times (2048 x 10922, float32, 2 cores).

Modules know the layout by the names of their parameters: `blocks_0` ... instead of `blocks`
(`unstacked` tells), `kernel_output_first` instead of `kernel` (see `nn.linear.Linear`).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bar_jax.nn.remat import rematerialised

OUTPUT_FIRST = "kernel_output_first"

# adaLN vectors depend on class and position, or time, only. Up to this size samplers make all of
# them ahead of their loop, so that it need not read their weights; a batch that needs more makes
# good use of the weights anyhow.
AHEAD_BYTES = 4 * 2**30


def decoding_params(params: dict, dtype: jnp.dtype, output_first: bool = True) -> dict:
    """A module's parameters, laid out for decoding.

    Args:
      params: as trained; under `blocks` (or `encoder_blocks`, ...) every array is stacked,
        [depth, ...].
      dtype: what is computed in; kernels and biases are cast to it.
      output_first: whether to turn kernels on CPU; not for products of some hundred rows.
    """
    out = {}
    for name, value in params.items():
        if name.endswith("blocks"):
            depth = jax.tree.leaves(value)[0].shape[0]
            for i in range(depth):
                layer = jax.tree.map(lambda stacked, i=i: stacked[i], value)
                out[f"{name}_{i}"] = decoding_params(layer, dtype, output_first)
        elif not isinstance(value, dict):
            out[name] = value
        elif value.keys() == {"kernel", "bias"}:
            kernel, bias = value["kernel"].astype(dtype), value["bias"].astype(dtype)
            out[name] = _linear(kernel, bias, output_first)
        else:
            out[name] = decoding_params(value, dtype, output_first)
    return out


def fit_ahead(layers: int, vectors: int, width: int, dtype: jnp.dtype) -> bool:
    """Whether all layers' adaLN vectors, of each class at each position or time, are made ahead."""
    return layers * vectors * 6 * width * jnp.dtype(dtype).itemsize <= AHEAD_BYTES


def unstacked(module: nn.Module, name: str = "blocks") -> bool:
    """Whether the parameters that a module is applied to are laid out for decoding."""
    return module.has_variable("params", f"{name}_0")


def layers(
    module: nn.Module, block: type[nn.Module], sizes: tuple, depth: int, name: str = "blocks"
) -> nn.Module | list[nn.Module]:
    """The layers that a module assigns to its attribute `name`, in `setup`.

    Args:
      module: has `remat`, whether blocks keep their inputs alone for the gradient.
      block: called with x, and with arguments that all layers share; gives (x, None).
      sizes: what a block is made with.

    Returns:
      One module that scans over stacked parameters, or where these are laid out for decoding, a
      list of `depth` blocks.
    """
    if unstacked(module, name):
        return [block(*sizes) for _ in range(depth)]
    return nn.scan(
        rematerialised(block, everything=module.remat),
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,
        length=depth,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )(*sizes)


def _linear(kernel: jax.Array, bias: jax.Array, output_first: bool) -> dict:
    if not output_first or jax.default_backend() != "cpu":
        return {"kernel": kernel, "bias": bias}
    # [in..., out...] -> [out, in].
    return {OUTPUT_FIRST: kernel.reshape(-1, bias.size).T, "bias": bias}
