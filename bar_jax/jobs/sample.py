"""Images for given classes, equally many of every class, or of classes drawn at random.

Writes `samples.npz` (`arr_0`: uint8 [B, H, W, 3], as the ADM evaluator reads it; `arr_1`: labels;
`settings`: what they were drawn with, JSON) and `samples.png`, a row per class. Image i depends on
the seed and i alone: not on the batch it was drawn in, on processes or on interruptions. A job that
was cut off goes on with the next batch: what was drawn is kept in `samples.partial-...`.
"""

import collections
import contextlib
import functools
import hashlib
import io
import itertools
import json
import logging
import os
import pathlib
import shutil
import time
import zipfile
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bar_jax import data
from bar_jax.bases import make_basis
from bar_jax.config import token_grid
from bar_jax.data import stream
from bar_jax.generators.settings import sampling_fields, sampling_settings
from bar_jax.jobs import encode
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime import preemption, workdir
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.files import naming, replacing, write_atomically
from bar_jax.runtime.progress import progress
from bar_jax.runtime.writer import update_summary
from bar_jax.training import checkpoint
from bar_jax.training import restore as models
from bar_jax.training.step import stream_key
from bar_jax.visualize.grid import image_grid, save_png

logger = logging.getLogger(__name__)
GRID_ROWS, GRID_COLUMNS = 10, 10
CHECKPOINT = "generator_checkpoint"  # the setting that tells where it lay


def run(config: ConfigDict) -> dict[str, object]:
    """Draws the configured samples, unless they are there already; returns the summary."""
    mesh = mesh_lib.make_mesh(**config.mesh)
    path = pathlib.Path(config.workdir) / "samples.npz"
    with jax.set_mesh(mesh):
        generator = models.load_generator(config, mesh)
        tokenizer = models.load_tokenizer(config, mesh)
        weights = _digests(config, generator=generator.step, tokenizer=tokenizer.step)
        settings = _settings(config, generator.step, tokenizer.step) | weights
        # Sets that are older than the digests do not tell them.
        if mesh_lib.first_says(lambda: weights | (_stored_settings(path) or {}) == settings):
            logger.info("sample: %s is finished, nothing to do", path)
            return update_summary(config.workdir, settings)
        began = time.monotonic()
        labels = sample_labels(config)
        given = ()
        if config.sample.keep != "none":
            half = half_mask(token_grid(config), config.sample.keep)
            given = real_images(config, labels), np.tile(half, (len(labels), 1))
        kept = Unfinished(config, settings, len(labels))
        batches = draw(config, mesh, generator, tokenizer, labels, *given, start=kept.count)
        with contextlib.closing(batches):
            for batch in batches:
                kept.append(mesh_lib.whole(batch["image"]))
                if kept.count < len(labels):
                    told = f"sample: {kept.count} of {len(labels)} images are kept"
                    preemption.check(told)
    seconds = {"seconds_sample": round(time.monotonic() - began, 1)}
    summary = update_summary(config.workdir, settings | seconds)
    with mesh_lib.all_or_none():
        if jax.process_index() == 0:
            picture = class_grid(kept.images, labels)
            save_png(path.with_suffix(".png"), picture)
            # Last: it says that all is there.
            source = str(pathlib.Path(config.workdir) / "generator" / str(generator.step))
            kept.finish(path, labels, settings | {CHECKPOINT: source})
    return summary


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
        given["kept"] = encode.tokens(tokenizer, tokenizer_params, batch["image"]), batch["keep"]
    scales = guidance_scale, temperature
    return pixels(
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
    classes = list(section.labels) or f"{section.images_per_class} of every class"
    if section.images and not section.labels:
        classes = "drawn at random"
    has_matrix = make_basis(config).has_matrix
    return {
        "samples": len(sample_labels(config)),
        "sample_classes": classes,
        "sample_seed": config.seed,
        "sample_guidance_scale": section.guidance_scale,
        "sample_temperature": section.temperature,
        **{f"sample_{name}": value for name, value in schedule(config).items()},
        **({"sample_basis_inverse": config.model.basis.inverse} if has_matrix else {}),
        "sample_keep": section.keep,
        "sample_dtype": section.dtype,
        "decode_dtype": config.encode.dtype,
        **({"sample_weights": section.weights} if section.weights != "float32" else {}),
        "generator_step": generator_step,
        "tokenizer_step": tokenizer_step,
    }


def _digests(config: ConfigDict, **steps: int) -> dict[str, str]:
    """Names of the weights that are used, of all parts that have a checkpoint.

    Steps do not tell a tokenizer from the same one with its decoder tuned for as long.
    """
    folders = {part: pathlib.Path(config.workdir) / part for part in steps}
    return {
        f"{part}_digest": checkpoint.weights_digest(folders[part], step)
        for part, step in steps.items()
        if (folders[part] / str(step)).is_dir()
    }


def schedule(config: ConfigDict) -> dict[str, object]:
    """The fields of `sample` that say in which steps the configured generator writes an image."""
    return {name: workdir.to_json(config.sample)[name] for name in sampling_fields(config)}


def _stored_settings(path: pathlib.Path) -> dict | None:
    if not path.exists():
        return None
    try:
        with np.load(path) as stored:
            settings = json.loads(str(stored["settings"]))
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        logger.warning("sample: %s is no set of samples (%s); drawn anew", path, error)
        return None
    settings.pop(CHECKPOINT, None)  # a workdir may have moved
    return settings


class Unfinished:
    """Images of a set that is being drawn, in a file that survives the process.

    Only process 0 keeps them; all know how many there are. The folder is named by the settings, so
    that sets that were begun with others are left alone.

    Attributes:
      count: of images that are kept.
      images: on process 0, uint8 [N, H, W, 3] mapped from the file, once there are some.
    """

    def __init__(self, config: ConfigDict, settings: dict[str, object], total: int):
        """Opens what is there of a set of `total` images."""
        told = json.dumps(settings, sort_keys=True)
        digest = hashlib.sha256(told.encode()).hexdigest()[:12]
        self._folder = pathlib.Path(config.workdir) / f"samples.partial-{digest}"
        self._total, self.images, found = total, None, 0
        if jax.process_index() == 0 and (self._folder / "count.json").exists():
            try:
                self.images = np.lib.format.open_memmap(self._folder / "images.npy", "r+")
                found = workdir.read_json(self._folder / "count.json")["images"]
            except (OSError, ValueError) as error:
                logger.warning("sample: %s is damaged (%s); drawn anew", self._folder, error)
        self.count = mesh_lib.first_says(lambda: found)
        if self.count:
            logger.info("sample: goes on after %d images of %s", self.count, self._folder)

    def append(self, images: np.ndarray) -> None:
        """Keeps the next images, uint8 [b, H, W, 3]; those past the end fill up a batch."""
        images = images[: self._total - self.count]
        if jax.process_index() == 0:
            path = self._folder / "images.npy"
            if self.images is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                shape = (self._total, *images.shape[1:])
                self.images = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
            # Written, not assigned: on a full disk a mapped file ends the process without a word.
            with naming(path), path.open("rb+") as file:
                file.seek(self.images.offset + self.count * self.images[0].nbytes)
                file.write(images.tobytes())
                file.flush()
                os.fsync(file.fileno())
            count = json.dumps({"images": self.count + len(images)})
            write_atomically(self._folder / "count.json", count.encode())
        self.count += len(images)

    def finish(self, path: pathlib.Path, labels: np.ndarray, settings: dict[str, object]) -> None:
        """Writes the .npz; what was there before is kept under a number."""
        if path.exists():
            number = 1
            while (older := path.with_name(f"{path.stem}.{number}.npz")).exists():
                number += 1
            logger.info("sample: what was there before is kept as %s", older)
            path.rename(older)
        with replacing(path) as temporary:
            with zipfile.ZipFile(temporary, "w") as file:  # as np.savez, but images stay on disk
                file.write(self._folder / "images.npy", "arr_0.npy")
                for name, array in (("arr_1", labels), ("settings", json.dumps(settings))):
                    buffer = io.BytesIO()
                    np.save(buffer, array)
                    file.writestr(f"{name}.npy", buffer.getvalue())
        self.images = None
        shutil.rmtree(self._folder)
