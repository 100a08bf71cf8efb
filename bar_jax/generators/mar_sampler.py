"""MAR's sampler: in each iteration the vectors of all tokens, then a few tokens of them.

Which iterations reveal how many tokens is known before any is drawn, so all shapes are static.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bar_jax.bases import permutation
from bar_jax.generators.request import Request
from bar_jax.heads import diffusion
from bar_jax.nn.decoding import decoding_params
from bar_jax.nn.guidance import both, branches

# At most how many programs of the encoder there are, beside the one for classes alone, each with
# slots for some number of known tokens. More waste less work on empty slots and compile longer.
SIZES = 8

# (iteration, places [B, n]) -> [B, n, d] where tokens start, and [T, B, n, d] noise of the steps.
Noise = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def hidden_after(length: int, iterations: int) -> tuple[int, ...]:
    """How many tokens each iteration leaves hidden: a cosine, at least one less each time.

    The last number is 1 (published: the last iteration reveals all, but its guidance is that of
    one hidden token).
    """
    hidden = [length]
    for i in range(1, iterations + 1):
        planned = math.floor(length * np.cos(math.pi / 2 * i / iterations))
        hidden.append(max(1, min(hidden[-1] - 1, planned)))
    return tuple(hidden[1:])


def guidance_scales(request: Request, length: int) -> jax.Array | None:
    """Scale of each iteration [I], by the tokens revealed after it; None without guidance.

    The last iteration does not quite reach S.
    """
    revealed = length - np.array(hidden_after(length, request.settings.iterations), np.float32)
    return request.guidance(jnp.asarray(revealed), length)


def sample(mar: nn.Module, params: dict, request: Request) -> jax.Array:
    """See `mar.MAR.sample`: order and noise of each example are drawn from its own key."""
    shape = (request.settings.steps + 1, mar.channels)

    def order(key):
        return jax.random.permutation(jax.random.fold_in(key, 0), mar.length)

    def noise(iteration, places):
        def one(key):
            key = jax.random.fold_in(key, 1 + iteration)
            return jax.random.normal(key, (places.shape[1], *shape))

        drawn = jnp.moveaxis(jax.vmap(one)(request.keys), 2, 0)
        return drawn[0], drawn[1:]

    return sample_tokens(mar, params, request, jax.vmap(order)(request.keys), noise)


def sample_tokens(
    mar: nn.Module, params: dict, request: Request, order: jax.Array, noise: Noise
) -> jax.Array:
    """Draws tokens, with every random number given.

    Args:
      mar: a `mar.MAR`.
      params: of `mar`.
      request: iterations that would reveal nothing (if there are more than N) are left out.
      order: [B, N], a permutation of the tokens; the last of it are revealed first.
      noise: see `Noise`.

    Returns:
      [B, N, d] float32.
    """
    nothing = lambda z, tokens: None
    return _reveal_all(mar, params, request, order, noise, nothing)[0]


def record_tokens(
    mar: nn.Module, params: dict, request: Request, order: jax.Array, noise: Noise
) -> tuple[jax.Array, list[dict[str, jax.Array]]]:
    """As `sample_tokens`, with what each iteration that reveals tokens did.

    Returns:
      [B, N, d], and for each iteration {`places` [B, n] of the n tokens revealed, `z` [B or 2 B, n,
      D] the head's condition for them, `tokens` [B, N, d] after it, 0 where hidden}.
    """
    kept = lambda z, tokens: (z, tokens)
    tokens, recorded = _reveal_all(mar, params, request, order, noise, kept)
    plan, places = _plan(mar.length, request.settings.iterations), jnp.flip(order, axis=1)
    return tokens, [
        {
            "places": places[:, known : known + count],
            "z": z[:, :count],
            "tokens": permutation.scatter(after[:, : mar.length], places),
        }
        for z, after, known, count in zip(*recorded, plan.known, plan.counts, strict=True)
    ]


def _reveal_all(mar, params, request, order, noise, record) -> tuple[jax.Array, Any]:
    """Tokens in raster order, and what is recorded of each iteration."""
    request.check(mar.num_classes)
    places = jnp.flip(order, axis=1)
    chex.assert_shape(places, (*request.labels.shape, mar.length))
    plan = _plan(mar.length, request.settings.iterations)
    slots, counts = (sorted(set(column)) for column in (plan.slots, plan.counts))
    most = counts[-1]
    encode, decode = _transformers(mar, params, request, places, slots[-1])
    draw = _drawer(mar, params["head"], request, noise, most)

    def reveal(tokens, step):
        """One iteration. Programs for every size are there, one of each kind runs."""
        i, known, size, count = step
        encoded = jax.lax.switch(size, [partial(encode, n) for n in slots], tokens, known)
        wanted = jnp.minimum(known + jnp.arange(most), mar.length - 1)
        z = decode(encoded, known, wanted)
        drawn = [partial(draw, n) for n in counts]
        drawn = jax.lax.switch(count, drawn, z, i, places[:, wanted])
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, drawn, known, axis=1)
        return tokens, record(z, tokens)

    # Room for the zeros that stand behind what the last iteration draws.
    tokens = jnp.zeros((places.shape[0], mar.length + most, mar.channels), jnp.float32)
    columns = (
        *(plan.iterations, plan.known),
        *(np.searchsorted(slots, plan.slots), np.searchsorted(counts, plan.counts)),
    )
    tokens, recorded = jax.lax.scan(reveal, tokens, tuple(map(jnp.asarray, columns)))
    return permutation.scatter(tokens[:, : mar.length], places), recorded


def _transformers(mar, params, request, places, most) -> tuple[Callable, Callable]:
    """The encoder and the decoder of a request, whose tokens stand at `places` [B, N].

    The encoder has slots for so many known tokens as its first argument says; the others are 0,
    like those not known, up to `most`. The decoder gives the vectors of the wanted tokens.
    """
    guided, weights = request.settings.guided, request.settings.weights
    params = decoding_params(params, mar.dtype, output_first=False, weights=weights)

    def apply(method, *args):
        return mar.apply({"params": params}, *args, method=method)

    classes, rows = branches(jnp.asarray(request.labels), mar.num_classes, guided)
    classes = apply(mar.embed_class, classes[rows])

    def encode(size, tokens, known):
        embedded = apply(mar.embed_tokens, tokens[:, :size], places[:, :size])
        encoded = apply(mar.encode, classes, both(embedded, guided), known)
        return jnp.pad(encoded, ((0, 0), (0, most - size), (0, 0)))

    def decode(encoded, known, wanted):
        return apply(mar.decode, encoded, both(places, guided), known, wanted)

    return encode, decode


def _drawer(mar, params, request, noise, most) -> Callable:
    """Draws the first `count` of the wanted tokens in iteration i; others, up to `most`, are 0.

    Args:
      params: of the head.
    """
    settings, guidance = request.settings, guidance_scales(request, mar.length)
    # Products of hundreds of rows in the transformers, of a few in the head.
    params = decoding_params(params, mar.dtype, weights=settings.weights, rows=request.rows * most)
    flat = lambda x: x.reshape(*x.shape[:-3], -1, x.shape[-1])

    def draw(count, z, i, places):
        first, of_steps = noise(i, places[:, :count])
        drawn = diffusion.sample(
            mar.head,
            params,
            flat(z[:, :count]),
            steps=settings.steps,
            guidance=None if guidance is None else guidance[i],
            temperature=request.temperature,
            first=flat(first),
            noise=flat(of_steps),
            clip=settings.clip,
        )
        drawn = drawn.reshape(first.shape)
        return jnp.pad(drawn, ((0, 0), (0, most - count), (0, 0)))

    return draw


class Plan(NamedTuple):
    """What each iteration that reveals tokens does, as lists.

    Attributes:
      iterations: its number.
      known: tokens known before it.
      counts: tokens that it reveals.
      slots: slots for known tokens that its encoder has.
    """

    iterations: list[int]
    known: list[int]
    counts: list[int]
    slots: list[int]


def _plan(length: int, iterations: int) -> Plan:
    """All iterations that reveal tokens; an iteration has the least slots that suffice."""
    hidden = hidden_after(length, iterations)
    known = [0, *(length - count for count in hidden[:-1]), length]
    steps = [(i, a, b - a) for i, (a, b) in enumerate(itertools.pairwise(known)) if b > a]
    # Of those that share a number of slots, the last fills them.
    size = lambda known: math.ceil(known * SIZES / length)
    largest = {size(known): known for _, known, _ in steps}
    return Plan(
        *map(list, zip(*steps, strict=True)), [largest[size(known)] for _, known, _ in steps]
    )
