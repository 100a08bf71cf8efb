"""The layout of parameters for writing tokens one after another.

Training stacks the layers, so that 32 compile as fast as 2, and keeps kernels input-first.
A sampler reads every weight once per token for a handful of rows; what counts is how fast weights
stream from memory. So it takes the layers apart (a slice of a stack is a copy at every token),
casts them to the compute dtype once, and on CPU turns kernels output-first: there a product of 2
rows with such a kernel ran 2.5 times as fast, of 8 rows 5 times (2048 x 10922, float32, 2 cores).
Elsewhere the hidden units of gated MLPs, 5461 of 2048 channels, are filled up with zeros: kernels
of aligned rows are faster there (on CPU they are not), and would else be padded at every product.

Layers' kernels may be kept small in memory, see `nn.narrow`. Those of adaLN stay as they are: they
are read once, for all tokens or all steps of the head, and so with more rows than it pays for.

Modules know the layout by the names of their parameters: `blocks_0` ... instead of `blocks`
(see `unstacked`), `kernel_output_first` or `kernel_tiles` instead of `kernel`, and `scale` beside
int8 (see `nn.linear.Linear`).
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bar_jax.nn import narrow
from bar_jax.nn.remat import rematerialised

OUTPUT_FIRST = "kernel_output_first"
TILES = "kernel_tiles"
SCALE = "scale"

Weights = Literal["float32", "bfloat16", "int8"]

# Hidden units of a gated MLP are filled up to a multiple of this: 128 bytes of bfloat16, what GPUs
# load at once. (A TPU's compiler lays arrays out in its own tiles.)
ALIGNED = 64

# adaLN vectors depend on class and position, or time, only. Up to this size samplers make all of
# them ahead of their loop, so that it need not read their weights; a batch that needs more makes
# good use of the weights anyhow.
AHEAD_BYTES = 4 * 2**30


def decoding_params(
    params: dict,
    dtype: jnp.dtype,
    output_first: bool = True,
    weights: Weights = "float32",
    rows: int = 1,
) -> dict:
    """A module's parameters, laid out for decoding.

    Args:
      params: as trained; under `blocks` (or `encoder_blocks`, ...) every array is stacked,
        [depth, ...].
      dtype: what is computed in; kernels and biases are cast to it.
      output_first: whether to turn kernels on CPU; not for products of some hundred rows.
      weights: what the kernels of layers are kept as, but for adaLN's; float32: as `dtype` says.
      rows: of the products in the loop; what `weights` are laid out for on CPU.
    """
    return _laid_out(params, dtype, output_first, "float32", weights, rows)


def _laid_out(params, dtype, output_first, weights, in_layers, rows) -> dict:
    """As `decoding_params`: `weights` are for what is here, `in_layers` for layers further in."""
    out = {}
    for name, value in _aligned(params, output_first).items():
        if name.endswith("blocks"):
            depth = jax.tree.leaves(value)[0].shape[0]
            for i in range(depth):
                layer = jax.tree.map(lambda stacked, i=i: stacked[i], value)
                out[f"{name}_{i}"] = _laid_out(
                    layer, dtype, output_first, in_layers, in_layers, rows
                )
        elif not isinstance(value, dict):
            out[name] = value
        elif value.keys() == {"kernel", "bias"}:
            kept = "float32" if name == "adaln" else weights
            bias = value["bias"].astype(dtype)
            if kept == "float32":
                out[name] = _linear(value["kernel"].astype(dtype), bias, output_first)
            else:
                out[name] = _narrow(value["kernel"], bias, output_first, kept, rows)
        else:
            out[name] = _laid_out(value, dtype, output_first, weights, in_layers, rows)
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
    if not _turned(output_first):
        return {"kernel": kernel, "bias": bias}
    # [in..., out...] -> [out, in].
    return {OUTPUT_FIRST: kernel.reshape(-1, bias.size).T, "bias": bias}


def _narrow(kernel, bias, output_first, weights, rows) -> dict:
    if weights == "int8":
        codes, scale = narrow.quantize(kernel.reshape(-1, bias.size))
        scales = {SCALE: scale.reshape(bias.shape)}
    else:
        codes, scales = kernel.astype(jnp.bfloat16).reshape(-1, bias.size), {}
    if _turned(output_first) and rows <= narrow.FEW_ROWS:
        return {TILES: narrow.to_tiles(codes), "bias": bias, **scales}
    return _linear(codes.reshape(kernel.shape), bias, output_first) | scales


def _turned(output_first: bool) -> bool:
    return output_first and jax.default_backend() == "cpu"


def _aligned(params: dict, output_first: bool) -> dict:
    """A gated MLP's parameters with hidden units of zeros; anything else as it is.

    The activation of a gate of 0, times 0, is 0.
    """
    gated = [name for name in ("up", "gate", "value") if name in params]
    if _turned(output_first) or gated not in (["up"], ["gate", "value"]) or "down" not in params:
        return params
    if params[gated[0]]["kernel"].ndim != (3 if gated == ["up"] else 2):  # not gated
        return params
    missing = -params["down"]["kernel"].shape[0] % ALIGNED
    last = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    down = params["down"]
    down = down | {"kernel": jnp.pad(down["kernel"], ((0, missing), (0, 0)))}
    return params | {name: jax.tree.map(last, params[name]) for name in gated} | {"down": down}
