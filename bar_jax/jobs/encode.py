"""Images (and their mirror images) to cached tokens, `cache/train` and `cache/validation`.

With `data.source=tokens` the tokens (bits of BAR-FSQ, moments of KL-16) are there already, a file
per image as the published code wrote them, and are packed into the same kind of cache; no tokenizer
is needed.
"""

import contextlib
import functools
import itertools
import logging
import os
import pathlib
import time
from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from bar_jax import data
from bar_jax.data import classes
from bar_jax.data.published_tokens import FILES_PER_BATCH
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime import preemption, workdir
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.progress import progress
from bar_jax.runtime.workdir import read_summary
from bar_jax.runtime.writer import update_summary
from bar_jax.tokenizers import cached_as, sequence_grid
from bar_jax.training import restore as models

logger = logging.getLogger(__name__)
SPLITS = ("train", "validation")
CROP = "adm"  # published token caches hold ADM centre crops


def run(config: ConfigDict) -> dict[str, object]:
    """Encodes (or packs) both splits; shards that are there already stay. Returns the summary."""
    began = time.monotonic()
    packs = config.data.source == "tokens"
    fingerprints, counts = (_pack_published if packs else _encode_images)(config)
    summary = {f"cached_{split}_images": count for split, (count, _) in counts.items()}
    # A run that was killed once the cache was complete has not told its time.
    untold = "seconds_encode" not in read_summary(config.workdir)
    if untold or any(written for _, written in counts.values()):
        summary["seconds_encode"] = round(time.monotonic() - began, 1)
    return update_summary(config.workdir, {"tokenizer_fingerprint": fingerprints[0], **summary})


def cache_path(config: ConfigDict, split: str) -> pathlib.Path:
    """Folder of a split's cache."""
    return pathlib.Path(config.workdir) / "cache" / split


def load_tokenizer(config: ConfigDict, mesh: jax.sharding.Mesh) -> models.Trained | None:
    """The workdir's tokenizer; None if there is none and the tokens came without it."""
    folder = pathlib.Path(config.workdir) / "tokenizer"
    if config.data.source == "tokens" and not workdir.begun(folder):
        logger.info("no tokenizer in %s, so no images are drawn", folder)
        return None
    with jax.set_mesh(mesh):
        return models.load_tokenizer(config, mesh)


def open_split(
    config: ConfigDict, split: str, fingerprints: Sequence[str | None] = (None,)
) -> data.TokenCache:
    """The finished cache of a split, of the configured tokenizer.

    Args:
      fingerprints: as of `models.fingerprints`; without them it is taken with any weights.
    """
    dtype, width = cached_as(config)
    return data.open_cache(
        cache_path(config, split),
        fingerprint=fingerprints[0],
        older=fingerprints[1:],
        dtype=dtype,
        width=width,
        grid=sequence_grid(config),
        num_classes=config.data.num_classes,
    )


# --- images --------------------------------------------------------------------------------------


def _encode_images(config) -> tuple[Sequence[str], dict[str, tuple[int, bool]]]:
    """The tokenizer's fingerprints, and what `_write_cache` returns for each split."""
    mesh = mesh_lib.make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        tokenizer = models.load_tokenizer(config, mesh)
        fingerprints = models.fingerprints(config, tokenizer.params)
        return fingerprints, {
            split: _encode(config, mesh, tokenizer, fingerprints, split) for split in SPLITS
        }


def _encode(config, mesh, tokenizer, fingerprints, split) -> tuple[int, bool]:
    source = data.open_images(config, validation=split == "validation")
    _keep_classes(config, source, split)
    mirrored, share = _mirrored(config, split), mesh_lib.batch_share(mesh)
    # Each share of a batch is of another shard.
    size, side = config.encode.batch_size // share.count, config.data.image_size
    names = ("image", "image_mirrored")[: 1 + mirrored]
    empty = dict.fromkeys(names, np.zeros((size, side, side, 3), np.uint8))
    empty |= {"mask": np.zeros(size, bool)}
    empty |= dict.fromkeys(("label", "index"), np.zeros(size, np.int32))

    def rows(start, stop):
        batches = data.eval_batches(
            source,
            image_size=side,
            crop=CROP,
            batch_size=size,
            mirrors=mirrored,
            start=start,
            stop=stop,
            on_damaged=config.data.on_damaged,
        )
        with contextlib.closing(batches):
            for batch in itertools.chain(batches, itertools.repeat(empty)):
                yield _encode_batch(mesh, tokenizer, batch, names)

    preprocessing = {
        "source": config.data.source,
        "name": config.data.name,
        "split": config.data[f"{split}_split"],
        "image_size": config.data.image_size,
        "crop": CROP,
    }
    sizes = (len(source), size)
    return _write_cache(config, split, fingerprints, preprocessing, sizes, share, rows)


def _encode_batch(mesh, tokenizer, batch, names):
    """Labels, indices, tokens and mirrored tokens of the images that the mask keeps."""
    keep = batch["mask"]
    rows = [batch["label"][keep], batch["index"][keep]]
    for name in names:
        images = mesh_lib.put_batch(mesh, {"image": batch[name]})["image"]
        codes = tokens(tokenizer.module, tokenizer.params, images)
        rows.append(mesh_lib.local_rows(codes)[keep])
    return rows


@functools.partial(jax.jit, static_argnums=0)
def latents(tokenizer: nn.Module, params: dict, images: jax.Array) -> jax.Array:
    """Images uint8 [B, H, W, 3] -> what generators model, [B, N, d], without noise."""
    return tokenizer.latents(tokens(tokenizer, params, images))


@functools.partial(jax.jit, static_argnums=0)
def tokens(tokenizer: nn.Module, params: dict, images: jax.Array) -> jax.Array:
    """Images uint8 [B, H, W, 3] -> what is cached of them, [B, N, K].

    Bits {0, 1} uint8 of BAR-FSQ, moments float32 of KL-16, values uint8 of pixels.
    """
    codes = tokenizer.apply({"params": params}, data.to_float(images), method=tokenizer.encode)
    return mesh_lib.constrain_batch(codes)


# --- tokens of the published code ----------------------------------------------------------------


def packed_fingerprint(config: ConfigDict) -> str:
    """The fingerprint of the published tokens of `data.path`, packed now if they are not yet.

    The files are not needed any more once they are packed.

    Raises:
      InputError: they are needed and not there, or the cache holds tokens of images.
    """
    headers = [cache_path(config, split) / "header.json" for split in SPLITS]
    if not mesh_lib.first_says(lambda: all(header.exists() for header in headers)):
        return run(config)["tokenizer_fingerprint"]
    if os.path.isdir(config.data.path):
        return _published_fingerprint(config)
    header = data.open_cache(headers[0].parent).header
    if header["preprocessing"]["source"] != "tokens":
        found = f"tokens of images, and no directory {config.data.path!r} of published ones"
        raise InputError(headers[0].parent, found, "data.path to be where they are")
    logger.info("encode: %r is gone; its packed tokens are there", config.data.path)
    return header["fingerprint"]


def _pack_published(config) -> tuple[Sequence[str], dict[str, tuple[int, bool]]]:
    """The tokens' fingerprint, and what `_write_cache` returns for each split."""
    fingerprint = _published_fingerprint(config)
    return [fingerprint], {split: _pack(config, fingerprint, split) for split in SPLITS}


def _published_fingerprint(config) -> str:
    section = config.data
    splits = section.train_split, section.validation_split or section.train_split
    return data.published_fingerprint(section.path, splits)


def _pack(config, fingerprint, split) -> tuple[int, bool]:
    section, grid = config.data, sequence_grid(config)
    source = data.open_published_tokens(
        section.path,
        section.train_split,
        section.validation_split,
        validation=split == "validation",
        token_format=data.TokenFormat(*cached_as(config), grid),
        mirrored=_mirrored(config, split),
    )
    data.check_labels(source, section.num_classes)
    _keep_classes(config, source, split)
    names = ("label", "index", "tokens", "tokens_mirrored")[: 3 + source.mirrored]

    def rows(start, stop):
        batches = data.published_batches(source, start, stop, on_damaged=section.on_damaged)
        with contextlib.closing(batches):
            for batch in batches:
                yield [batch[name] for name in names]
        yield from itertools.repeat(None)

    preprocessing = {"source": "tokens", "files": data.files_digest(source)}
    # Nothing is computed: every process packs shards of its own.
    own, count = jax.process_index(), jax.process_count()
    share = mesh_lib.Share((own,), count, own, count, first=True)
    sizes = (len(source), FILES_PER_BATCH)
    return _write_cache(config, split, [fingerprint], preprocessing, sizes, share, rows)


# --- both ----------------------------------------------------------------------------------------


def _keep_classes(config, source, split) -> None:
    """Says what the labels of the cache mean, before there are any."""
    if split == "train":
        mesh_lib.first_alone(lambda: classes.keep(config, source.class_names))


def _mirrored(config, split) -> bool:
    return config.data.mirror and split == "train"


def _write_cache(
    config, split, fingerprints, preprocessing, sizes, share, rows
) -> tuple[int, bool]:
    """Writes the shards that are missing, as many at a time as there are shares of the processes.

    Args:
      fingerprints: as of `models.fingerprints`.
      sizes: examples of the source, and of a batch of one share.
      share: this process's.
      rows: (start, stop) -> generator of [labels, indices, tokens] of the good examples, with their
        mirrored tokens if mirrored, batch by batch; then without end of none, or None. All
        processes ask equally often, since they may compute a batch together.

    Returns:
      The images in the cache, and whether anything was written.
    """
    dtype, width = cached_as(config)
    path, (examples, size) = cache_path(config, split), sizes
    plan = mesh_lib.first_alone(
        lambda: data.plan_cache(
            path,
            fingerprint=fingerprints[0],
            older=fingerprints[1:],
            dtype=dtype,
            width=width,
            grid=sequence_grid(config),
            num_classes=config.data.num_classes,
            mirrored=_mirrored(config, split),
            preprocessing=preprocessing,
            num_examples=examples,
            # A shard is at least a batch: what is left of a batch is computed and thrown away.
            num_shards=min(config.encode.shards, -(-examples // config.encode.batch_size)),
        )
    )
    missing = mesh_lib.first_says(lambda: [s.number for s in data.missing_shards(plan)])
    shards = [shard for shard in data.all_shards(plan) if shard.number in missing]
    done = examples - sum(shard.stop - shard.start for shard in shards)
    with progress(f"encode {split}", examples, "image", done) as advance:
        for first in range(0, len(shards), share.count):
            together = shards[first : first + share.count]
            lengths = np.array([shard.stop - shard.start for shard in together])
            own = together[share.index] if share.index < len(together) else None
            writes = own is not None and share.first
            writer = data.shard_writer(plan, own) if writes else contextlib.nullcontext()
            batches = rows(own.start, own.stop) if own else rows(0, 0)
            with writer as write, contextlib.closing(batches):
                for begin in range(0, lengths.max(), size):
                    preemption.check(f"encode {split}: finished shards are kept")
                    arrays = next(batches)
                    if writes and arrays is not None:
                        write(*arrays)
                    advance(int(np.clip(lengths - begin, 0, size).sum()))
    # Before that, another process may still be writing.
    mesh_lib.wait_for_all(f"shards of {split}")
    if shards or not mesh_lib.first_says((path / "header.json").exists):
        with mesh_lib.all_or_none():
            if jax.process_index() == 0:
                data.finish_cache(plan)
    count = len(data.open_cache(path))
    logger.info("encode %s: %d of %d images are in the cache", split, count, examples)
    return count, bool(shards)
