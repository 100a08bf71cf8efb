"""The token caches of a workdir, `cache/train` and `cache/validation`: opened, and written."""

import contextlib
import logging
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from bar_jax.data import classes
from bar_jax.data.token_cache import TokenCache, open_cache
from bar_jax.data.token_writer import (
    CachePlan,
    all_shards,
    finish_cache,
    missing_shards,
    plan_cache,
    shard_writer,
)
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime import preemption
from bar_jax.runtime.progress import progress
from bar_jax.runtime.workdir import read_summary
from bar_jax.runtime.writer import update_summary
from bar_jax.tokenizers import cached_as, sequence_grid

logger = logging.getLogger(__name__)
SPLITS = ("train", "validation")


def cache_path(config: ConfigDict, split: str) -> pathlib.Path:
    """Folder of a split's cache."""
    return pathlib.Path(config.workdir) / "cache" / split


def open_split(
    config: ConfigDict, split: str, fingerprints: Sequence[str | None] = (None,)
) -> TokenCache:
    """The finished cache of a split, of the configured tokenizer.

    Args:
      fingerprints: as of `training.restore.fingerprints`; without them a cache of any weights is
        taken.
    """
    dtype, width = cached_as(config)
    return open_cache(
        cache_path(config, split),
        fingerprint=fingerprints[0],
        older=fingerprints[1:],
        dtype=dtype,
        width=width,
        grid=sequence_grid(config),
        num_classes=config.data.num_classes,
    )


def keep_classes(config: ConfigDict, source: Sequence, split: str) -> None:
    """Records what the labels of the cache mean, before any is written."""
    if split == "train":
        mesh_lib.first_alone(lambda: classes.keep(config, source.class_names))


def is_mirrored(config: ConfigDict, split: str) -> bool:
    """Whether a split's cache also holds the tokens of mirror images."""
    return config.data.mirror and split == "train"


class Examples(NamedTuple):
    """What a cache is written from.

    Attributes:
      fingerprints: as of `training.restore.fingerprints`.
      preprocessing: JSON-able; what was done to the images.
      count: examples of the source.
      batch_size: examples of a batch of one share of the processes.
      rows: (start, stop) -> batches of those examples, as `token_writer.shard_writer` takes them,
        then endless ones without any. All shares are asked equally often, since they may compute a
        batch together.
    """

    fingerprints: Sequence[str]
    preprocessing: dict
    count: int
    batch_size: int
    rows: Callable[[int, int], Iterator[list[np.ndarray] | None]]


def write(
    config: ConfigDict, split: str, examples: Examples, share: mesh_lib.Share
) -> tuple[int, bool]:
    """Writes the shards that are missing, as many at a time as there are shares of the processes.

    Returns:
      The images in the cache, and whether anything was written.
    """
    plan, count, size = _plan(config, split, examples), examples.count, examples.batch_size
    missing = mesh_lib.broadcast_from_first(lambda: [s.number for s in missing_shards(plan)])
    shards = [shard for shard in all_shards(plan) if shard.number in missing]
    done = count - sum(shard.stop - shard.start for shard in shards)
    with progress(f"encode {split}", count, "image", done) as advance:
        for first in range(0, len(shards), share.count):
            together = shards[first : first + share.count]
            lengths = np.array([shard.stop - shard.start for shard in together])
            own = together[share.index] if share.index < len(together) else None
            writes = own is not None and share.first
            writer = shard_writer(plan, own) if writes else contextlib.nullcontext()
            batches = examples.rows(own.start, own.stop) if own else examples.rows(0, 0)
            with writer as append, contextlib.closing(batches):
                for begin in range(0, lengths.max(), size):
                    preemption.check(f"encode {split}: finished shards are kept")
                    arrays = next(batches)
                    if writes and arrays is not None:
                        append(*arrays)
                    advance(int(np.clip(lengths - begin, 0, size).sum()))
    # Before that, another process may still be writing.
    mesh_lib.wait_for_all(f"shards of {split}")
    if shards or not mesh_lib.broadcast_from_first((plan.path / "header.json").exists):
        with mesh_lib.all_or_none():
            if jax.process_index() == 0:
                finish_cache(plan)
    found = len(open_cache(plan.path))
    logger.info("encode %s: %d of %d images are in the cache", split, found, count)
    return found, bool(shards)


def _plan(config, split, examples) -> CachePlan:
    """What the cache of a split is to hold, begun by one process."""
    dtype, width = cached_as(config)
    return mesh_lib.first_alone(
        lambda: plan_cache(
            cache_path(config, split),
            fingerprint=examples.fingerprints[0],
            older=examples.fingerprints[1:],
            dtype=dtype,
            width=width,
            grid=sequence_grid(config),
            num_classes=config.data.num_classes,
            mirrored=is_mirrored(config, split),
            preprocessing=examples.preprocessing,
            num_examples=examples.count,
            # A shard is at least a batch: what is left of a batch is computed and thrown away.
            num_shards=min(config.encode.shards, -(-examples.count // config.encode.batch_size)),
        )
    )


def report(
    config: ConfigDict, fingerprint: str, written: dict[str, tuple[int, bool]], began: float
) -> dict[str, object]:
    """Writes what the caches hold into the summary, and returns it.

    Args:
      written: what `write` returned for each split.
      began: when the work began, of `time.monotonic`.
    """
    summary = {f"cached_{split}_images": count for split, (count, _) in written.items()}
    # A run that was killed once the cache was complete has not reported its time.
    untold = "seconds_encode" not in read_summary(config.workdir)
    if untold or any(new for _, new in written.values()):
        summary["seconds_encode"] = round(time.monotonic() - began, 1)
    return update_summary(config.workdir, {"tokenizer_fingerprint": fingerprint, **summary})
