"""xAR's sampler: cell after cell, each from noise, with the finished ones in a KV cache."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bar_jax.generators.flow import guided, sampling_times, solve
from bar_jax.generators.settings import Settings
from bar_jax.nn.decode_attention import empty_cache
from bar_jax.nn.decoding import decoding_params, fit_ahead
from bar_jax.nn.time import time_index


def sample(
    xar: nn.Module,
    params: dict,
    labels: jax.Array,
    keys: jax.Array,
    settings: Settings,
    guidance_scale: jax.Array | float,
    temperature: jax.Array | float,
) -> jax.Array:
    """See `xar.XAR.sample`: the noise of each example is drawn from its own key."""
    shape = (xar.cells, settings.steps, xar.cell, xar.channels)
    noise = jax.vmap(lambda key: jax.random.normal(key, shape), out_axes=2)(keys)
    return sample_sequence(
        xar,
        params,
        labels,
        settings.sampler,
        settings.steps,
        guidance_scale if settings.guided else None,
        temperature * noise[:, 0],
        temperature * noise[:, 1:],
        settings.attention,
    )


def sample_sequence(
    host: nn.Module,
    params: dict,
    labels: jax.Array,
    sampler: str,
    steps: int,
    guidance_scale: jax.Array | float | None,
    start: jax.Array,
    noise: jax.Array | None,
    attention: str = "xla",
) -> jax.Array:
    """Writes the cells one after another, each from noise, with the earlier ones in a KV cache.

    Guidance at cell i of n is 1 + (S - 1) i / (n - 1), so the first cell needs no unconditional
    branch. It acts on the flow; drift is linear in it, so that this is guidance on the drift, as
    published.

    Args:
      host: an `XAR`, and its parameters.
      labels: [B] in 0..num_classes.
      sampler: `euler_maruyama` (steps - 1 stochastic steps and one without noise) | `euler`.
      steps: evaluations of each cell.
      guidance_scale: S; None runs without the unconditional branch.
      start: [cells, B, n, d] noise that each cell starts as.
      noise: [cells, steps - 1, B, n, d] of the stochastic steps; `euler` does not use it.
      attention: who computes it, of `nn.decode_attention.KINDS`.

    Returns:
      [B, N, d] float32.
    """
    params = decoding_params(params, host.dtype)
    apply = lambda method, *args: host.apply({"params": params}, *args, method=method)
    batch = labels.shape[0]
    is_guided = guidance_scale is not None and host.cells > 1
    classes = jnp.append(labels, host.num_classes) if is_guided else labels
    rows = jnp.arange(batch)
    if is_guided:  # "no class" stands once for all of the unconditional branch
        rows = jnp.concatenate([rows, jnp.full_like(rows, batch)])
    times = sampling_times(sampler, steps)
    # adaLN depends on class and time alone: made for all steps ahead, and for finished cells.
    index = time_index(np.append(times[:-1], 0.0))
    layers = host.depth + (host.decoder_depth or host.depth)
    ahead = None
    if fit_ahead(layers, classes.size * index.size, host.width, host.dtype):
        ahead = apply(host.modulations, classes, index)
    both = lambda x: jnp.concatenate([x, x]) if is_guided else x
    noise_of = lambda cell: None if noise is None else noise[cell]

    def modulations(i, rows):
        if ahead is None:
            return tuple(m[rows, 0] for m in apply(host.modulations, classes, index[i][None]))
        return tuple(jax.lax.dynamic_index_in_dim(m, i, 1, keepdims=False)[rows] for m in ahead)

    def first_flow(x, i, cache):
        return apply(host.extend, x, modulations(i, rows[:batch]), cache, 0)

    first, _ = solve(sampler, times, first_flow, start[0], noise_of(0), None)
    if host.cells == 1:
        return first

    def write_cell(carry, inputs):
        previous, cache = carry
        s, x, cell_noise = inputs
        done = modulations(steps, rows)
        _, cache = apply(host.extend, both(previous), done, cache, (s - 1) * host.cell)
        scale = None if not is_guided else 1 + (guidance_scale - 1) * s / (host.cells - 1)

        def flow_at(x, i, cache):
            flow, cache = apply(host.extend, both(x), modulations(i, rows), cache, s * host.cell)
            return guided(flow[:batch], flow[batch:], scale) if is_guided else flow, cache

        x, cache = solve(sampler, times, flow_at, x, cell_noise, cache)
        return (x, cache), x

    head_dim = host.width // host.heads
    sizes = rows.size, host.length, host.heads, head_dim
    cache = (empty_cache(attention, *sizes, host.dtype),) * layers
    inputs = (jnp.arange(1, host.cells), start[1:], noise_of(slice(1, None)))
    _, rest = jax.lax.scan(write_cell, (first, cache), inputs)
    cells = jnp.concatenate([first[None], rest])
    return jnp.moveaxis(cells, 0, 1).reshape(batch, host.length, host.channels)
