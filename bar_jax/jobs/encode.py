"""Images (and their mirror images) to cached tokens, `cache/train` and `cache/validation`.

With `data.source=tokens` the tokens (bits of BAR-FSQ, moments of KL-16) are there already, a file
per image as the published code wrote them, and are packed into the same kind of cache; no tokenizer
is needed.
"""

import contextlib
import itertools
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from bar_jax import data
from bar_jax.data import caches, codec, packing
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime.job import Job, batches_of
from bar_jax.training import restore

CROP = "adm"  # published token caches hold ADM centre crops


def run(config: ConfigDict) -> dict[str, object]:
    """Encodes (or packs) both splits; shards that are there already stay. Returns the summary."""
    if config.data.source == "tokens":
        return packing.pack(config)
    began, mesh = time.monotonic(), mesh_lib.make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        tokenizer = restore.load_tokenizer(config, mesh)
        fingerprints = restore.fingerprints(config, tokenizer.params)
        written = {
            split: _encode(config, mesh, tokenizer, fingerprints, split) for split in caches.SPLITS
        }
    return caches.report(config, fingerprints[0], written, began)


def _encode(config, mesh, tokenizer, fingerprints, split) -> tuple[int, bool]:
    """Encodes a split; returns what `caches.write` does."""
    source = data.open_images(config, validation=split == "validation")
    caches.keep_classes(config, source, split)
    mirrored, share = caches.is_mirrored(config, split), mesh_lib.batch_share(mesh)
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
    examples = caches.Examples(fingerprints, preprocessing, len(source), size, rows)
    return caches.write(config, split, examples, share)


def _encode_batch(mesh, tokenizer, batch, names) -> list[np.ndarray]:
    """Labels, indices, tokens and mirrored tokens of the images that the mask keeps."""
    keep = batch["mask"]
    rows = [batch["label"][keep], batch["index"][keep]]
    for name in names:
        images = mesh_lib.put_batch(mesh, {"image": batch[name]})["image"]
        codes = codec.tokens(tokenizer.module, tokenizer.params, images)
        rows.append(mesh_lib.local_rows(codes)[keep])
    return rows


JOB = Job(run, batches_of("encode"))
