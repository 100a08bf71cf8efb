"""Images for labels, drawn in batches over the mesh; image i depends on the seed and i alone."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bar_jax.data import codec, stream
from bar_jax.generators import sampling_settings
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime.progress import progress
from bar_jax.training import restore as models
from bar_jax.training.step import stream_key


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
    generator: models.Trained,
    tokenizer: models.Trained,
    labels: np.ndarray,
    given: np.ndarray | None = None,
    keep: np.ndarray | None = None,
) -> np.ndarray:
    """Images of `draw`, uint8 [B, H, W, 3], all of them on every process."""
    batches = draw(config, mesh, generator, tokenizer, labels, given, keep)
    return np.concatenate([mesh_lib.whole(b["image"]) for b in batches])[: len(labels)]


def draw(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    generator: models.Trained,
    tokenizer: models.Trained,
    labels: np.ndarray,
    given: np.ndarray | None = None,
    keep: np.ndarray | None = None,
    *,
    start: int = 0,
) -> Iterator[dict[str, jax.Array | np.ndarray]]:
    """Draws an image for each label, in batches of `sample.batch_size`.

    Args:
      labels: [B] integers; image i is drawn from key (seed, i).
      given: uint8 [B, H, W, 3] images of which tokens are kept; None: none are.
      keep: bool [B, N], True where a token of the given image is kept.
      start: the first image to draw.

    Returns:
      Batches: `image` uint8 [b, H, W, 3], cut over the mesh; and of the rows of this process
      `index` and `label`, and `mask`, False where the last batch is filled up.
    """
    section, size = config.sample, config.sample.batch_size
    key, own = stream_key(config.seed, "sample"), mesh_lib.batch_share(mesh).rows(size)
    with progress("sample", len(labels), "image", done=start) as advance:
        for begin in range(start, len(labels), size):
            local = begin + own
            inside = np.minimum(local, len(labels) - 1)
            batch = {"index": local.astype(np.int32), "label": labels[inside]}
            kept = {} if given is None else {"image": given[inside], "keep": keep[inside]}
            drawn = _sample(
                generator.module,
                tokenizer.module,
                sampling_settings(config),
                generator.params,
                tokenizer.params,
                mesh_lib.put_batch(mesh, batch | kept),
                jnp.float32(section.guidance_scale),
                jnp.float32(section.temperature),
                key,
            )
            yield {**batch, "image": drawn, "mask": local < len(labels)}
            advance(min(size, len(labels) - begin))


@functools.partial(jax.jit, static_argnums=range(3))
def _sample(
    generator, tokenizer, settings, params, tokenizer_params, batch, guidance_scale, temperature,
    key,
):  # fmt: skip
    """Tokens of a batch, decoded: uint8 [B, H, W, 3]."""
    given = {}
    if "keep" in batch:
        given["kept"] = codec.tokens(tokenizer, tokenizer_params, batch["image"]), batch["keep"]
    scales = guidance_scale, temperature
    return codec.pixels(
        tokenizer,
        tokenizer_params,
        drawn(generator, settings, params, batch, *scales, key, **given),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def drawn(generator, settings, params, batch, guidance_scale, temperature, key, **given):
    """Tokens of a batch, for its `label` [B]; image `index[i]` is drawn from key (seed, index)."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
    return generator.sample(
        params, batch["label"], keys, settings, guidance_scale, temperature, **given
    )
