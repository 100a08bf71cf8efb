"""MAR's sampler: in each iteration the vectors of all tokens, then a few tokens of them.

Which iterations reveal how many tokens is known before any is drawn, so all shapes are static.
"""

import itertools
import math
from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bar_jax.bases import permutation
from bar_jax.generators.settings import Settings
from bar_jax.heads import diffusion
from bar_jax.nn.decoding import decoding_params

# The encoder has slots for a multiple of N / SIZES known tokens: iterations that need the same
# number share a program. More sizes waste less work on empty slots and take longer to compile.
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
      record: also return what each iteration did, for tests.

    Returns:
      [B, N, d] float32; with `record` also, for each iteration that reveals tokens, {`places`
      [B, n] of the n tokens revealed, `z` [B or 2 B, n, D] what the head was told of them,
      `tokens` [B, N, d] after it, 0 where hidden}.
    """
    labels, places = jnp.asarray(labels), jnp.flip(order, axis=1)
    chex.assert_shape(places, (labels.shape[0], mar.length))
    params = decoding_params(params, mar.dtype)
    both = (lambda x: x) if guidance is None else (lambda x: jnp.concatenate([x, x]))
    if guidance is not None:
        labels = jnp.concatenate([labels, jnp.full_like(labels, mar.num_classes)])

    def apply(method, *args):
        return mar.apply({"params": params}, *args, method=method)

    classes = apply(mar.embed_class, labels)
    groups = _groups(mar.length, iterations)
    longest = max(count for group in groups for _, _, count in group)
    # Room for what the last iteration draws beyond the tokens there are, see `reveal`.
    tokens = jnp.zeros((places.shape[0], mar.length + longest, mar.channels), jnp.float32)
    recorded = []

    for group in groups:
        slots, most = group[-1][1], max(count for _, _, count in group)

        def reveal(tokens, step, slots=slots, most=most):
            """One iteration; draws `most` tokens, those too many are drawn anew by the next."""
            i, known = step
            wanted = jnp.minimum(known + jnp.arange(most), mar.length - 1)
            embedded = apply(mar.embed_tokens, tokens[:, :slots], places[:, :slots])
            z = apply(mar.encode, classes, both(embedded), known)
            z = apply(mar.decode, z, both(places), known, wanted)
            first, of_steps = noise(i, places[:, wanted])
            flat = lambda x: x.reshape(*x.shape[:-3], -1, x.shape[-1])
            drawn = diffusion.sample(
                mar.head,
                params["head"],
                flat(z),
                steps=steps,
                guidance=None if guidance is None else guidance[i],
                temperature=temperature,
                first=flat(first),
                noise=flat(of_steps),
            )
            tokens = jax.lax.dynamic_update_slice_in_dim(
                tokens, drawn.reshape(first.shape), known, axis=1
            )
            return tokens, (z, tokens) if record else None

        index, known, counts = zip(*group, strict=True)
        steps_of_group = (jnp.array(index), jnp.array(known))
        tokens, kept = jax.lax.scan(reveal, tokens, steps_of_group)
        for row in range(len(group)) if record else ():
            count, end = counts[row], known[row] + counts[row]
            after = jnp.where(
                (jnp.arange(mar.length) < end)[None, :, None], kept[1][row][:, : mar.length], 0
            )
            recorded.append(
                {
                    "places": places[:, known[row] : end],
                    "z": kept[0][row][:, :count],
                    "tokens": permutation.scatter(after, places),
                }
            )
    tokens = permutation.scatter(tokens[:, : mar.length], places)
    return (tokens, recorded) if record else tokens


def _groups(length: int, iterations: int) -> list[list[tuple[int, int, int]]]:
    """Iterations (number, tokens known before, tokens revealed), by how many slots they need."""
    hidden = hidden_after(length, iterations)
    known = [0, *(length - count for count in hidden[:-1]), length]
    steps = [(i, a, b - a) for i, (a, b) in enumerate(itertools.pairwise(known)) if b > a]
    slots = lambda step: math.ceil(step[1] * SIZES / length)
    return [list(group) for _, group in itertools.groupby(steps, slots)]
