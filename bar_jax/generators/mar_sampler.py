"""MAR's sampler: in each iteration the vectors of all tokens, then a few tokens of them.

Which iterations reveal how many tokens is known before any is drawn, so all shapes are static.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bar_jax.bases import permutation
from bar_jax.generators.settings import Settings
from bar_jax.heads import diffusion
from bar_jax.nn.decoding import Weights, decoding_params

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


def guidance_scales(scale: jax.Array | float, length: int, iterations: int) -> jax.Array:
    """Guidance of each iteration [I]: linear in the share of tokens revealed after it (published).

    1 + (S - 1) (L - hidden) / L: the last iteration does not quite reach S.
    """
    revealed = length - np.array(hidden_after(length, iterations), np.float32)
    return 1 + (scale - 1) * jnp.asarray(revealed) / length


def sample(
    mar: nn.Module,
    params: dict,
    labels: jax.Array,
    keys: jax.Array,
    settings: Settings,
    guidance_scale: jax.Array | float,
    temperature: jax.Array | float,
) -> jax.Array:
    """See `mar.MAR.sample`: order and noise of each example are drawn from its own key."""
    shape = (settings.steps + 1, mar.channels)

    def order(key):
        return jax.random.permutation(key, mar.length)

    def noise(iteration, places):
        def one(key):
            key = jax.random.fold_in(key, 1 + iteration)
            return jax.random.normal(key, (places.shape[1], *shape))

        drawn = jnp.moveaxis(jax.vmap(one)(keys), 2, 0)
        return drawn[0], drawn[1:]

    guidance = None
    if settings.guided:
        guidance = guidance_scales(guidance_scale, mar.length, settings.iterations)
    return sample_tokens(
        mar,
        params,
        labels,
        order=jax.vmap(lambda key: order(jax.random.fold_in(key, 0)))(keys),
        iterations=settings.iterations,
        steps=settings.steps,
        clip=settings.clip,
        weights=settings.weights,
        guidance=guidance,
        temperature=temperature,
        noise=noise,
    )


def sample_tokens(
    mar: nn.Module,
    params: dict,
    labels: jax.Array,
    *,
    order: jax.Array,
    iterations: int,
    steps: int,
    guidance: jax.Array | None,
    temperature: jax.Array | float,
    noise: Noise,
    clip: float = 0.0,
    weights: Weights = "float32",
    record: bool = False,
) -> jax.Array | tuple[jax.Array, list[dict[str, jax.Array]]]:
    """Draws tokens, with every random number given.

    Args:
      mar: a `mar.MAR`.
      params: of `mar`.
      labels: [B] in 0..num_classes; num_classes is "no class".
      order: [B, N], a permutation of the tokens; the last of it are revealed first.
      iterations: I; those that would reveal nothing (if I is more than N) are left out.
      steps: of the diffusion head.
      guidance: [I] scale of each iteration; None runs without the unconditional branch.
      temperature: what the noise of the head's steps is multiplied by.
      noise: see `Noise`.
      clip: of the head, see `heads.diffusion.sample`.
      weights: what layers' kernels are kept as, see `nn.decoding.decoding_params`.
      record: also return what each iteration did, for tests.

    Returns:
      [B, N, d] float32; with `record` also, for each iteration that reveals tokens, {`places`
      [B, n] of the n tokens revealed, `z` [B or 2 B, n, D] what the head was told of them,
      `tokens` [B, N, d] after it, 0 where hidden}.
    """
    labels, places = jnp.asarray(labels), jnp.flip(order, axis=1)
    chex.assert_shape(places, (labels.shape[0], mar.length))
    both = (lambda x: x) if guidance is None else (lambda x: jnp.concatenate([x, x]))
    if guidance is not None:
        labels = jnp.concatenate([labels, jnp.full_like(labels, mar.num_classes)])
    plan = _plan(mar.length, iterations)
    slots, counts = (sorted(set(column)) for column in (plan.slots, plan.counts))
    most = counts[-1]
    # Products of hundreds of rows in the transformers, of a few in the head.
    rows = labels.shape[0] * most
    head_params = decoding_params(params["head"], mar.dtype, weights=weights, rows=rows)
    params = decoding_params(params, mar.dtype, output_first=False, weights=weights)

    def apply(method, *args):
        return mar.apply({"params": params}, *args, method=method)

    classes = apply(mar.embed_class, labels)

    def encode(size, tokens, known):
        """With slots for `size` known tokens; the others are 0, like those not known."""
        embedded = apply(mar.embed_tokens, tokens[:, :size], places[:, :size])
        encoded = apply(mar.encode, classes, both(embedded), known)
        return jnp.pad(encoded, ((0, 0), (0, slots[-1] - size), (0, 0)))

    def draw(count, z, i, wanted):
        """The first `count` of the wanted tokens; the others are 0."""
        first, of_steps = noise(i, places[:, wanted[:count]])
        flat = lambda x: x.reshape(*x.shape[:-3], -1, x.shape[-1])
        drawn = diffusion.sample(
            mar.head,
            head_params,
            flat(z[:, :count]),
            steps=steps,
            guidance=None if guidance is None else guidance[i],
            temperature=temperature,
            first=flat(first),
            noise=flat(of_steps),
            clip=clip,
        )
        drawn = drawn.reshape(first.shape)
        return jnp.pad(drawn, ((0, 0), (0, most - count), (0, 0)))

    def reveal(tokens, step):
        """One iteration. Programs for every size are there, one of each kind runs."""
        i, known, size, count = step
        encoded = jax.lax.switch(size, [partial(encode, n) for n in slots], tokens, known)
        wanted = jnp.minimum(known + jnp.arange(most), mar.length - 1)
        z = apply(mar.decode, encoded, both(places), known, wanted)
        drawn = jax.lax.switch(count, [partial(draw, n) for n in counts], z, i, wanted)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, drawn, known, axis=1)
        return tokens, (z, tokens) if record else None

    # Room for the zeros that stand behind what the last iteration draws.
    tokens = jnp.zeros((places.shape[0], mar.length + most, mar.channels), jnp.float32)
    columns = (
        *(plan.iterations, plan.known),
        *(np.searchsorted(slots, plan.slots), np.searchsorted(counts, plan.counts)),
    )
    tokens, kept = jax.lax.scan(reveal, tokens, tuple(map(jnp.asarray, columns)))
    at_places = lambda tokens: permutation.scatter(tokens[:, : mar.length], places)
    if not record:
        return at_places(tokens)
    recorded = [
        {
            "places": places[:, known : known + count],
            "z": z[:, :count],
            "tokens": at_places(after),
        }
        for z, after, known, count in zip(*kept, plan.known, plan.counts, strict=True)
    ]
    return at_places(tokens), recorded


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
