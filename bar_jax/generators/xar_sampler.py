"""xAR's sampler: cell after cell, each from noise, with the finished ones in a KV cache."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bar_jax.generators.flow import sampling_times, solve
from bar_jax.generators.request import Request
from bar_jax.nn import guidance
from bar_jax.nn.decode_attention import empty_cache
from bar_jax.nn.decoding import decoding_params, fit_ahead
from bar_jax.nn.guidance import both, branches
from bar_jax.nn.time import time_index


def sample(xar: nn.Module, params: dict, request: Request) -> jax.Array:
    """See `xar.XAR.sample`: the noise of each example is drawn from its own key."""
    shape = (xar.cells, request.settings.steps, xar.cell, xar.channels)
    noise = jax.vmap(lambda key: jax.random.normal(key, shape), out_axes=2)(request.keys)
    start, later = request.temperature * noise[:, 0], request.temperature * noise[:, 1:]
    return sample_sequence(xar, params, request, start, later)


def sample_sequence(
    host: nn.Module, params: dict, request: Request, start: jax.Array, noise: jax.Array | None
) -> jax.Array:
    """Writes the cells one after another, each from noise, with the earlier ones in a KV cache.

    The guidance's scale at cell i of n is `request.guidance(i, n - 1)`; the first cell has no
    unconditional branch. It acts on the flow; drift is linear in it, so that this is guidance on
    the drift, as published.

    Args:
      host: an `XAR`, and its parameters.
      request: `euler_maruyama` takes `steps` - 1 stochastic steps and one without noise.
      start: [cells, B, n, d] noise that each cell starts as, times the temperature.
      noise: [cells, steps - 1, B, n, d] of the stochastic steps, the same; `euler` has none.

    Returns:
      [B, N, d] float32.
    """
    labels, settings = jnp.asarray(request.labels), request.settings
    batch, sampler, guided = labels.shape[0], settings.sampler, settings.guided and host.cells > 1
    params = decoding_params(
        params, host.dtype, weights=settings.weights, rows=labels.size * host.cell
    )
    times = sampling_times(sampler, settings.steps)
    classes, rows = branches(labels, host.num_classes, guided)
    modulations = _modulations(host, params, classes, times)
    noise_of = lambda cell: None if noise is None else noise[cell]

    def extend(x, of_step, cache, cell):
        return host.apply(
            {"params": params}, x, of_step, cache, cell * host.cell, method=host.extend
        )

    def first_flow(x, i, cache):
        return extend(x, modulations(i, rows[:batch]), cache, 0)

    first, _ = solve(sampler, times, first_flow, start[0], noise_of(0), None)
    if host.cells == 1:
        return first

    def write_cell(carry, inputs):
        previous, cache = carry
        s, x, cell_noise = inputs
        _, cache = extend(both(previous, guided), modulations(settings.steps, rows), cache, s - 1)
        scale = request.guidance(s, host.cells - 1)

        def flow_at(x, i, cache):
            flow, cache = extend(both(x, guided), modulations(i, rows), cache, s)
            return guidance.guided(flow, scale), cache

        x, cache = solve(sampler, times, flow_at, x, cell_noise, cache)
        return (x, cache), x

    sizes = rows.size, host.length, host.heads, host.width // host.heads
    cache = (empty_cache(settings.attention, *sizes, host.dtype),) * _layers(host)
    inputs = (jnp.arange(1, host.cells), start[1:], noise_of(slice(1, None)))
    _, rest = jax.lax.scan(write_cell, (first, cache), inputs)
    cells = jnp.concatenate([first[None], rest])
    return jnp.moveaxis(cells, 0, 1).reshape(batch, host.length, host.channels)


def _layers(host: nn.Module) -> int:
    """Of encoder and decoder together."""
    return host.depth + (host.decoder_depth or host.depth)


def _modulations(host, params, classes, times) -> Callable:
    """adaLN vectors: (step i, rows) -> for every layer [rows, 6, D]; after the last step is time 0.

    They depend on class and time alone: made for all steps ahead, and for finished cells, if they
    fit.
    """
    index = time_index(np.append(times[:-1], 0.0))
    apply = lambda index: host.apply({"params": params}, classes, index, method=host.modulations)
    if fit_ahead(_layers(host), classes.size * index.size, host.width, host.dtype):
        ahead = apply(index)
        at = lambda m, i: jax.lax.dynamic_index_in_dim(m, i, 1, keepdims=False)
        return lambda i, rows: tuple(at(m, i)[rows] for m in ahead)
    return lambda i, rows: tuple(m[rows, 0] for m in apply(index[i][None]))
