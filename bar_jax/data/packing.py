"""Tokens of the published code, a file per image, packed into the caches of a workdir."""

import contextlib
import itertools
import logging
import os
import time

import jax
from ml_collections import ConfigDict

from bar_jax.data import caches
from bar_jax.data.published_tokens import (
    FILES_PER_BATCH,
    TokenFormat,
    files_digest,
    open_published_tokens,
    published_batches,
    published_fingerprint,
)
from bar_jax.data.sources import check_labels
from bar_jax.data.token_cache import open_cache
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime.errors import InputError
from bar_jax.tokenizers import cached_as, sequence_grid

logger = logging.getLogger(__name__)


def packed_fingerprint(config: ConfigDict) -> str:
    """The fingerprint of the published tokens of `data.path`, packed now if they are not yet.

    The files are not needed any more once they are packed.

    Raises:
      InputError: they are needed and not there, or the cache holds tokens of images.
    """
    headers = [caches.cache_path(config, split) / "header.json" for split in caches.SPLITS]
    if not mesh_lib.broadcast_from_first(lambda: all(header.exists() for header in headers)):
        return pack(config)["tokenizer_fingerprint"]
    if os.path.isdir(config.data.path):
        return _fingerprint(config)
    header = open_cache(headers[0].parent).header
    if header["preprocessing"]["source"] != "tokens":
        found = f"tokens of images, and no directory {config.data.path!r} of published ones"
        raise InputError(headers[0].parent, found, "data.path to be where they are")
    logger.info("encode: %r is gone; its packed tokens are there", config.data.path)
    return header["fingerprint"]


def pack(config: ConfigDict) -> dict[str, object]:
    """Packs both splits; shards that are there already stay. Returns the summary."""
    began, fingerprint = time.monotonic(), _fingerprint(config)
    written = {split: _pack(config, fingerprint, split) for split in caches.SPLITS}
    return caches.report(config, fingerprint, written, began)


def _fingerprint(config) -> str:
    section = config.data
    splits = section.train_split, section.validation_split or section.train_split
    return published_fingerprint(section.path, splits)


def _pack(config, fingerprint, split) -> tuple[int, bool]:
    """Packs a split; returns what `caches.write` does."""
    section, grid = config.data, sequence_grid(config)
    source = open_published_tokens(
        section.path,
        section.train_split,
        section.validation_split,
        validation=split == "validation",
        token_format=TokenFormat(*cached_as(config), grid),
        mirrored=caches.is_mirrored(config, split),
    )
    check_labels(source, section.num_classes)
    caches.keep_classes(config, source, split)
    names = ("label", "index", "tokens", "tokens_mirrored")[: 3 + source.mirrored]

    def rows(start, stop):
        batches = published_batches(source, start, stop, on_damaged=section.on_damaged)
        with contextlib.closing(batches):
            for batch in batches:
                yield [batch[name] for name in names]
        yield from itertools.repeat(None)

    preprocessing = {"source": "tokens", "files": files_digest(source)}
    # Nothing is computed: every process packs shards of its own.
    own, count = jax.process_index(), jax.process_count()
    share = mesh_lib.Share((own,), count, own, count, first=True)
    size = FILES_PER_BATCH
    examples = caches.Examples([fingerprint], preprocessing, len(source), size, rows)
    return caches.write(config, split, examples, share)
