"""Batches of images and of cached tokens: endless and shuffled to train, in order to evaluate."""

import logging
from collections.abc import Iterator
from contextlib import closing
from functools import partial

import numpy as np

from bar_jax.data import stream
from bar_jax.data.images import DamagedImage, center_crop, center_crop_adm, mirror, random_crop
from bar_jax.data.token_cache import TokenCache
from bar_jax.runtime.errors import InputError

logger = logging.getLogger(__name__)

# A folder of nothing but damaged images should end the run, not be searched to its end.
MAX_DAMAGED_IN_A_ROW = 100


def train_batches(
    source,
    *,
    image_size: int,
    crop: str,
    mirror: bool,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    num_workers: int = 0,
    rows: np.ndarray | None = None,
    on_damaged: str = "skip",
) -> Iterator[dict]:
    """Shuffled, augmented training images without end.

    The batch of a step is a function of (source, seed, step, batch_size): starting at step k gives
    what skipping k batches gives, any number of workers gives the same batches, and the processes'
    rows make up the same global batch however many they are (`stream.positions`). Every epoch
    visits every example once, in another order.

    Args:
      source: see `sources.py`.
      image_size: S, the side of the crops.
      crop: `adm`, `random` or `center`.
      mirror: flip half of the images, drawn anew each time an image comes up.
      batch_size: B, global.
      seed: of the order and the augmentation.
      start_step: the first step to make a batch for.
      num_workers: processes that decode (the source must be picklable, and a script needs the
        `__main__` guard); 0 decodes in threads.
      rows: `[b]` of the B rows to read, ascending; None for all.
      on_damaged: `skip` warns once per damaged image and takes the next good one of the source in
        its place; `refuse` raises.

    Returns:
      a generator of `image [b, S, S, 3] uint8` and `label [b] int32`; `close()` stops its threads
      and workers.

    Raises:
      InputError: now, if an argument or the source is wrong; while iterating, if a damaged image
        is refused, 100 in a row are damaged or a label is not in range(num_classes).
    """
    _check(source, batch_size, on_damaged)
    if crop not in ("adm", "random", "center"):
        raise InputError("data.crop", repr(crop), "adm, random or center")
    read = partial(
        _read_training_images,
        source=source,
        image_size=image_size,
        crop=crop,
        mirrored=mirror,
        seed=seed,
        rows=(batch_size, rows),
    )
    batches = stream.prefetch(read, start_step, num_workers=num_workers)
    return _checked(batches, source.num_classes, on_damaged)


def eval_batches(
    source,
    *,
    image_size: int,
    crop: str,
    batch_size: int,
    mirrors: bool = False,
    start: int = 0,
    stop: int | None = None,
    on_damaged: str = "skip",
    rows: np.ndarray | None = None,
) -> Iterator[dict]:
    """The images `start` to `stop` of a source, once and in order.

    Args:
      source: see `sources.py`.
      image_size: S, the side of the crops.
      crop: `adm` or `center`.
      batch_size: B, global.
      mirrors: give the mirror images as well.
      start: first index.
      stop: the index to end before; None for the length of the source.
      on_damaged: `skip` warns and masks a damaged image; `refuse` raises.
      rows: `[b]` of the B rows of a batch to read, ascending; None for all. Their number does not
        change that of the batches.

    Returns:
      a generator of `image [b, S, S, 3] uint8`, `label [b] int32`, `index [b] int64` into the
      source, `mask [b] bool` and, on demand, `image_mirrored`. Where the mask is False the row is
      no image but zeros: a damaged one, or padding of the last batch (index -1).

    Raises:
      InputError: as `train_batches`.
    """
    _check(source, batch_size, on_damaged)
    if crop not in ("adm", "center"):
        raise InputError("data.crop", repr(crop), "adm or center, where nothing is random")
    stop = len(source) if stop is None else stop
    read = partial(
        _read_images_in_order,
        source=source,
        image_size=image_size,
        crop=crop,
        mirrors=mirrors,
        start=start,
        stop=stop,
        rows=(batch_size, rows),
    )
    batches = stream.prefetch(read, 0, -(-(stop - start) // batch_size))
    return _checked(batches, source.num_classes, on_damaged)


def token_batches(
    cache: TokenCache,
    *,
    batch_size: int,
    seed: int,
    mirror: bool,
    start_step: int = 0,
    rows: np.ndarray | None = None,
) -> Iterator[dict]:
    """Shuffled cached tokens without end, with the guarantees of `train_batches`.

    Args:
      cache: from `open_cache`.
      mirror: take the tokens of the mirror image half of the time.
      batch_size, seed, start_step, rows: as `train_batches`.

    Returns:
      a generator of `tokens [b, N, K]` (of the cache's dtype; bits: uint8 in {0, 1}) and
      `label [b] int32`; `close()` ends it.

    Raises:
      InputError: mirror images are asked for and not in the cache, or the batch does not divide.
    """
    _check_batch_size(batch_size)
    if mirror and not cache.mirrored:
        raise InputError(
            "data.mirror",
            f"True, and no mirror images in {cache.path}",
            "False, or a cache that was encoded with data.mirror=True",
        )
    read = partial(
        _read_training_tokens,
        cache=cache,
        mirrored=mirror,
        seed=seed,
        rows=(batch_size, rows),
    )
    return stream.prefetch(read, start_step)


def token_eval_batches(
    cache: TokenCache,
    *,
    batch_size: int,
    rows: np.ndarray | None = None,
) -> Iterator[dict]:
    """All cached tokens, once and in order.

    Returns:
      a generator of `tokens [b, N, K]`, `label [b] int32`, `index [b] int64` into the source that
      was encoded, `mask [b] bool` and, if the cache has them, `tokens_mirrored`. The last batch is
      padded with rows of zeros, index -1 and mask False.
    """
    _check_batch_size(batch_size)
    read = partial(_read_tokens_in_order, cache=cache, rows=(batch_size, rows))
    return stream.prefetch(read, 0, -(-len(cache) // batch_size))


# --- one batch -----------------------------------------------------------------------------------
# `rows` is (batch_size, rows of it or None). Readers run in threads or other processes; they hand
# damaged images on as `damaged`, for `_checked` to judge in the process that iterates.


def _read_training_images(step, *, source, image_size, crop, mirrored, seed, rows) -> dict:
    places = stream.positions(step, *rows)
    wheres = zip(
        stream.uniforms(places, seed, "top"), stream.uniforms(places, seed, "left"), strict=True
    )
    images, labels, damaged = [], [], []
    for index, where in zip(stream.examples_at(places, seed, len(source)), wheres, strict=True):
        example = _next_good_example(source, int(index), damaged)
        if example is None:
            return {"damaged": damaged}
        images.append(_crop(example["image"], image_size, crop, where))
        labels.append(example["label"])
    batch = {"image": np.stack(images), "label": np.asarray(labels, np.int32), "damaged": damaged}
    if mirrored:
        flip = stream.uniforms(places, seed, "mirror") < 0.5
        batch["image"][flip] = mirror(batch["image"][flip])
    return batch


def _read_images_in_order(step, *, source, image_size, crop, mirrors, start, stop, rows) -> dict:
    indices = start + stream.positions(step, *rows)
    indices[indices >= stop] = -1
    batch = {
        "image": np.zeros((len(indices), image_size, image_size, 3), np.uint8),
        "label": np.zeros(len(indices), np.int32),
        "index": indices,
        "mask": indices >= 0,
        "damaged": [],
    }
    for row, index in enumerate(indices):
        if index < 0:
            break
        try:
            example = source[int(index)]
        except DamagedImage as error:
            batch["damaged"].append((error.name, error.reason))
            batch["mask"][row] = False
            continue
        batch["image"][row] = _crop(example["image"], image_size, crop)
        batch["label"][row] = example["label"]
    if mirrors:
        batch["image_mirrored"] = np.ascontiguousarray(mirror(batch["image"]))
    return batch


def _read_training_tokens(step, *, cache, mirrored, seed, rows) -> dict:
    places = stream.positions(step, *rows)
    examples = cache.read(stream.examples_at(places, seed, len(cache)))
    tokens = examples["tokens"]
    if mirrored:
        flip = stream.uniforms(places, seed, "mirror") < 0.5
        tokens[flip] = examples["tokens_mirrored"][flip]
    return {"tokens": tokens, "label": examples["label"]}


def _read_tokens_in_order(step, *, cache, rows) -> dict:
    places = stream.positions(step, *rows)
    mask = places < len(cache)
    batch = cache.read(np.where(mask, places, 0))
    for array in batch.values():
        array[~mask] = 0
    batch["index"][~mask] = -1
    return {**batch, "mask": mask}


def _crop(image, size, crop, where=None) -> np.ndarray:
    if crop == "adm":
        return center_crop_adm(image, size)
    if crop == "center":
        return center_crop(image, size)
    return random_crop(image, size, where)


# --- damage and mistakes -------------------------------------------------------------------------


def _next_good_example(source, index: int, damaged: list) -> dict | None:
    """The first readable example from `index` on; the damaged ones before it join `damaged`."""
    for offset in range(min(len(source), MAX_DAMAGED_IN_A_ROW)):
        try:
            return source[(index + offset) % len(source)]
        except DamagedImage as error:
            damaged.append((error.name, error.reason))
    return None


def _checked(batches: Iterator[dict], num_classes: int, on_damaged: str) -> Iterator[dict]:
    """Warns of damaged images once each, or refuses them; refuses labels out of range."""
    warned = set()
    with closing(batches):
        for batch in batches:
            damaged = batch.pop("damaged")
            for name, reason in damaged:
                if on_damaged == "refuse":
                    raise InputError(
                        name,
                        f"a damaged image ({reason})",
                        'a readable one, or data.on_damaged="skip"',
                    )
                if name not in warned:
                    warned.add(name)
                    logger.warning("Skipped a damaged image: %s (%s)", name, reason)
            if "image" not in batch:
                raise InputError(
                    "data.path",
                    f"no readable image in {len(damaged)} tries, such as {damaged[-1][0]}",
                    "images that Pillow can read",
                )
            labels = batch["label"]
            for label in labels[(labels < 0) | (labels >= num_classes)]:
                raise InputError("data.num_classes", f"label {label}", f"0 to {num_classes - 1}")
            yield batch


def _check(source, batch_size: int, on_damaged: str) -> None:
    _check_batch_size(batch_size)
    if on_damaged not in ("skip", "refuse"):
        raise InputError("data.on_damaged", repr(on_damaged), "skip or refuse")
    if not len(source):
        raise InputError("data.source", "no images", "at least one")


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError("batch_size", str(batch_size), "a positive number")
