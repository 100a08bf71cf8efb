"""Images for given classes, or equally many of every class.

Writes `samples.npz` (`arr_0`: uint8 [B, H, W, 3], as the ADM evaluator reads it; `arr_1`: labels;
`settings`: what they were drawn with, JSON) and `samples.png`, a row per class. Image i depends on
the seed and i alone, not on the batch it was drawn in.
"""

import collections
import functools
import io
import itertools
import json
import logging
import pathlib
import time
import zipfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bar_jax import data, models, workdir
from bar_jax import mesh as mesh_lib
from bar_jax.config import real_valued, token_grid
from bar_jax.errors import InputError
from bar_jax.files import write_atomically
from bar_jax.generators import make_basis
from bar_jax.generators.settings import sampling_settings
from bar_jax.jobs import encode
from bar_jax.training import preemption
from bar_jax.training.progress import progress
from bar_jax.training.step import stream_key
from bar_jax.training.writer import update_summary
from bar_jax.visualize.grid import image_grid, save_png

logger = logging.getLogger(__name__)
GRID_ROWS, GRID_COLUMNS = 10, 10


def run(config: ConfigDict) -> dict[str, object]:
    """Draws the configured samples, unless they are there already; returns the summary."""
    mesh = mesh_lib.make_mesh(**config.mesh)
    folder = pathlib.Path(config.workdir)
    with jax.set_mesh(mesh):
        generator = models.load_generator(config, mesh)
        tokenizer = models.load_tokenizer(config, mesh)
        settings = _settings(config, generator.step, tokenizer.step)
        if _stored_settings(folder / "samples.npz") == settings:
            logger.info("sample: %s is finished, nothing to do", folder / "samples.npz")
            return update_summary(config.workdir, settings)
        began = time.monotonic()
        labels = sample_labels(config)
        kept = ()
        if config.sample.keep != "none":
            half = half_mask(token_grid(config), config.sample.keep)
            kept = real_images(config, labels), np.tile(half, (len(labels), 1))
        images = sample_images(
            config, mesh, generator, tokenizer, labels, *kept, interruptible=True
        )
    seconds = {"seconds_sample": round(time.monotonic() - began, 1)}
    summary = update_summary(config.workdir, settings | seconds)
    if jax.process_index() == 0:
        save_png(folder / "samples.png", class_grid(images, labels))
        _save(folder / "samples.npz", images, labels, settings)  # last: it says that all is there
    return summary


def sample_labels(config: ConfigDict) -> np.ndarray:
    """Labels [B] int32: those given, or every class equally often, interleaved.

    Interleaved because Inception Scores are averaged over consecutive groups.
    """
    if config.sample.labels:
        return np.asarray(config.sample.labels, np.int32)
    classes = config.data.num_classes
    return np.tile(np.arange(classes, dtype=np.int32), config.sample.images_per_class)


def sample_images(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    generator: models.Trained,
    tokenizer: models.Trained,
    labels: np.ndarray,
    given: np.ndarray | None = None,
    keep: np.ndarray | None = None,
    *,
    interruptible: bool = False,
) -> np.ndarray:
    """Draws an image for each label, in batches of `sample.batch_size`.

    Args:
      labels: [B] integers; image i is drawn from key (seed, i).
      given: uint8 [B, H, W, 3] images of which tokens are kept; None: none are.
      keep: bool [B, N], True where a token of the given image is kept.
      interruptible: end with `Preempted` on SIGTERM. In training, whose loop has a state to save
        first, it may not.

    Returns:
      uint8 [B, H, W, 3], on every process.
    """
    section, size = config.sample, config.sample.batch_size
    key = stream_key(config.seed, "sample")
    images = []
    with progress("sample", len(labels), "image") as advance:
        for begin in range(0, len(labels), size):
            if interruptible:
                preemption.check("sample: nothing is kept of an unfinished set")
            rows = np.arange(begin, begin + size)
            inside = np.minimum(rows, len(labels) - 1)  # the last batch is filled up
            # Process p draws the rows p * b to (p + 1) * b - 1 of the batch.
            local = np.array_split(np.arange(size), jax.process_count())[jax.process_index()]
            batch = {"index": rows[local].astype(np.int32), "label": labels[inside[local]]}
            if given is not None:
                batch |= {"image": given[inside[local]], "keep": keep[inside[local]]}
            drawn = _sample(
                generator.module,
                tokenizer.module,
                sampling_settings(config),
                generator.params,
                tokenizer.params,
                mesh_lib.put_batch(mesh, batch),
                jnp.float32(section.guidance_scale),
                jnp.float32(section.temperature),
                key,
            )
            images.append(mesh_lib.whole(drawn))
            advance(min(size, len(labels) - begin))
    return np.concatenate(images)[: len(labels)]


@functools.partial(jax.jit, static_argnums=range(3))
def _sample(
    generator, tokenizer, settings, params, tokenizer_params, batch, guidance_scale, temperature,
    key,
):  # fmt: skip
    """Tokens of a batch, decoded: uint8 [B, H, W, 3]."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
    given = {}
    if "keep" in batch:
        given["kept"] = encode.tokens(tokenizer, tokenizer_params, batch["image"]), batch["keep"]
    drawn = generator.sample(
        params, batch["label"], keys, settings, guidance_scale, temperature, **given
    )
    return pixels(tokenizer, tokenizer_params, drawn)


@functools.partial(jax.jit, static_argnums=0)
def pixels(tokenizer: nn.Module, params: dict, tokens: jax.Array) -> jax.Array:
    """Tokens [B, N, k], bits {0, 1} or real numbers -> images uint8 [B, H, W, 3]."""
    images = tokenizer.apply({"params": params}, tokens, method=tokenizer.decode)
    return data.to_uint8(images)


def half_mask(grid: tuple[int, int], half: str) -> np.ndarray:
    """bool [N], True where a token of the grid lies in that half: upper | lower | left | right."""
    row, column = np.indices(grid)
    rows, columns = grid
    inside = {
        "upper": row < rows / 2,
        "lower": row >= rows / 2,
        "left": column < columns / 2,
        "right": column >= columns / 2,
    }
    return inside[half].reshape(-1)


def real_images(config: ConfigDict, labels: np.ndarray) -> np.ndarray:
    """A validation image of each label's class, each time another one while there are enough."""
    source = data.open_images(config, validation=True)
    wanted = collections.Counter(map(int, labels))
    found: dict[int, list] = {label: [] for label in wanted}
    batches = data.eval_batches(
        source,
        image_size=config.data.image_size,
        crop="center",
        batch_size=config.encode.batch_size,
        on_damaged=config.data.on_damaged,
    )
    for batch in batches:
        for i in np.flatnonzero(batch["mask"]):
            label = int(batch["label"][i])
            if len(found.get(label, ())) < wanted[label]:
                found[label].append(batch["image"][i])
    for label, images in found.items():
        if not images:
            raise InputError("sample.keep", f"no validation image of class {label}", "at least one")
    turns = {label: itertools.cycle(images) for label, images in found.items()}
    return np.stack([next(turns[int(label)]) for label in labels])


def class_grid(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A picture with a row for each of the first classes, uint8 [H', W', 3]."""
    classes = np.unique(labels)[:GRID_ROWS]
    rows = [images[labels == label][:GRID_COLUMNS] for label in classes]
    columns = max(map(len, rows))
    blank = np.full((columns, *images.shape[1:]), 255, np.uint8)
    return image_grid(np.concatenate([np.concatenate([r, blank[len(r) :]]) for r in rows]), columns)


def _settings(config: ConfigDict, generator_step: int, tokenizer_step: int) -> dict[str, object]:
    """What the samples depend on."""
    section = config.sample
    labels = list(section.labels)
    has_matrix = make_basis(config).has_matrix
    return {
        "samples": len(sample_labels(config)),
        "sample_classes": labels or f"{section.images_per_class} of every class",
        "sample_seed": config.seed,
        "sample_guidance_scale": section.guidance_scale,
        "sample_temperature": section.temperature,
        **{f"sample_{name}": value for name, value in schedule(config).items()},
        **({"sample_basis_inverse": config.model.basis.inverse} if has_matrix else {}),
        "sample_keep": section.keep,
        "sample_dtype": config.dtype,
        "generator_step": generator_step,
        "tokenizer_step": tokenizer_step,
    }


def schedule(config: ConfigDict) -> dict[str, object]:
    """The fields of `sample` that say in which steps the configured generator writes an image."""
    section, kind = config.sample, config.model.generator.kind
    if not real_valued(config):
        names = ("unmasking_schedule", "order")
    else:
        names = {"xar": ("sampler", "steps"), "mar": ("iterations", "steps", "clip")}
        names = names.get(kind, ("steps", "clip"))
    return {name: workdir.to_json(section)[name] for name in names}


def _stored_settings(path: pathlib.Path) -> dict | None:
    if not path.exists():
        return None
    try:
        with np.load(path) as stored:
            return json.loads(str(stored["settings"]))
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        logger.warning("sample: %s is no set of samples (%s); drawn anew", path, error)
        return None


def _save(path: pathlib.Path, images, labels, settings) -> None:
    """Writes the .npz whole or not at all; one drawn with other settings is kept under a number."""
    if path.exists():
        number = 1
        while (older := path.with_name(f"{path.stem}.{number}.npz")).exists():
            number += 1
        logger.info("sample: what was there before is kept as %s", older)
        path.rename(older)
    buffer = io.BytesIO()
    np.savez(buffer, arr_0=images, arr_1=labels, settings=json.dumps(settings))
    write_atomically(path, buffer.getvalue())
