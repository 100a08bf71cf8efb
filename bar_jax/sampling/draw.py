"""Images for labels, drawn in batches over the mesh; image i depends on the seed and i alone."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bar_jax.data import codec, stream
from bar_jax.generators import sampling_settings
from bar_jax.generators.request import Kept, Request
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime.progress import progress
from bar_jax.sampling.kept import Given
from bar_jax.training.restore import Trained
from bar_jax.training.step import stream_key


class Models(NamedTuple):
    """What images are drawn with."""

    generator: Trained
    tokenizer: Trained


def sample_labels(config: ConfigDict) -> np.ndarray:
    """Labels [B] int32: those given, drawn at random, or every class equally often, interleaved.

    Interleaved because Inception Scores are averaged over consecutive groups.
    """
    section, classes = config.sample, config.data.num_classes
    if section.labels:
        return np.asarray(section.labels, np.int32)
    if section.images:
        drawn = stream.uniforms(np.arange(section.images), config.seed, "sample/labels")
        return (drawn * classes).astype(np.int32)
    return np.tile(np.arange(classes, dtype=np.int32), section.images_per_class)


def sample_images(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    models: Models,
    labels: np.ndarray,
    given: Given | None = None,
) -> np.ndarray:
    """Images of `draw`, uint8 [B, H, W, 3], all of them on every process."""
    batches = draw(config, mesh, models, labels, given)
    return np.concatenate([mesh_lib.gather_to_host(b["image"]) for b in batches])[: len(labels)]


def draw(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    models: Models,
    labels: np.ndarray,
    given: Given | None = None,
    *,
    start: int = 0,
) -> Iterator[dict[str, jax.Array | np.ndarray]]:
    """Draws an image for each label, in batches of `sample.batch_size`.

    Args:
      labels: [B] integers; image i is drawn from key (seed, i).
      given: images of which tokens are kept; None: none are.
      start: the first image to draw.

    Returns:
      Batches: `image` uint8 [b, H, W, 3], cut over the mesh; and of the rows of this process
      `index` and `label`, and `mask`, False where the last batch is filled up.
    """
    size, (generator, tokenizer) = config.sample.batch_size, models
    own = mesh_lib.batch_share(mesh).rows(size)
    with progress("sample", len(labels), "image", done=start) as advance:
        for begin in range(start, len(labels), size):
            local = begin + own
            inside = np.minimum(local, len(labels) - 1)
            batch = {"index": local.astype(np.int32), "label": labels[inside]}
            request = make_request(config, mesh, batch)
            if given is not None:
                kept = {"image": given.images[inside], "mask": given.mask[inside]}
                kept = mesh_lib.put_batch(mesh, kept)
                tokens = codec.tokens(tokenizer.module, tokenizer.params, kept["image"])
                request = request.replace(kept=Kept(tokens, kept["mask"]))
            tokens = draw_tokens(generator.module, generator.params, request)
            images = codec.pixels(tokenizer.module, tokenizer.params, tokens)
            yield {**batch, "image": images, "mask": local < len(labels)}
            advance(min(size, len(labels) - begin))


def make_request(
    config: ConfigDict, mesh: jax.sharding.Mesh, batch: dict[str, np.ndarray]
) -> Request:
    """What `config.sample` asks for, cut over the mesh.

    Args:
      batch: rows of this process, `index` and `label` [b] int32.
    """
    arrays = mesh_lib.put_batch(mesh, {name: batch[name] for name in ("index", "label")})
    return Request(
        labels=arrays["label"],
        keys=_image_keys(stream_key(config.seed, "sample"), arrays["index"]),
        guidance_scale=jnp.float32(config.sample.guidance_scale),
        temperature=jnp.float32(config.sample.temperature),
        settings=sampling_settings(config),
    )


@jax.jit
def _image_keys(key, index) -> jax.Array:
    """[B]: image i is drawn from key (seed, i)."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


@functools.partial(jax.jit, static_argnums=0)
def draw_tokens(generator: nn.Module, params: dict, request: Request) -> jax.Array:
    """Tokens of a batch, [B, N, k] bits {0, 1} or real numbers."""
    return generator.sample(params, request)
