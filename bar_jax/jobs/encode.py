"""Images (and their mirror images) to cached tokens, `cache/train` and `cache/validation`."""

import contextlib
import functools
import logging
import pathlib
import time

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from bar_jax import data, models
from bar_jax import mesh as mesh_lib
from bar_jax.config import token_grid
from bar_jax.training import preemption
from bar_jax.training.progress import progress
from bar_jax.training.writer import update_summary
from bar_jax.workdir import read_summary

logger = logging.getLogger(__name__)
CROP = "adm"  # published token caches hold ADM centre crops


def run(config: ConfigDict) -> dict[str, object]:
    """Encodes both splits; shards that are there already stay. Returns the summary."""
    began = time.monotonic()
    mesh = mesh_lib.make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        tokenizer = models.load_tokenizer(config, mesh)
        fingerprint = models.fingerprint(config, tokenizer.params)
        counts = {
            split: _encode(config, mesh, tokenizer, fingerprint, split)
            for split in ("train", "validation")
        }
    summary = {f"cached_{split}_images": count for split, (count, _) in counts.items()}
    # A run that was killed once the cache was complete has not told its time.
    untold = "seconds_encode" not in read_summary(config.workdir)
    if untold or any(written for _, written in counts.values()):
        summary["seconds_encode"] = round(time.monotonic() - began, 1)
    return update_summary(config.workdir, {"tokenizer_fingerprint": fingerprint, **summary})


def cache_path(config: ConfigDict, split: str) -> pathlib.Path:
    """Folder of a split's cache."""
    return pathlib.Path(config.workdir) / "cache" / split


def _encode(config, mesh, tokenizer, fingerprint, split) -> tuple[int, bool]:
    """Encodes one split; returns its number of images and whether anything was written."""
    source = data.open_images(config, validation=split == "validation")
    mirrored = config.data.mirror and split == "train"
    plan = data.plan_cache(
        cache_path(config, split),
        fingerprint=fingerprint,
        bits=config.model.tokenizer.bits,
        grid=token_grid(config),
        num_classes=config.data.num_classes,
        mirrored=mirrored,
        preprocessing={
            "source": config.data.source,
            "name": config.data.name,
            "split": config.data[f"{split}_split"],
            "image_size": config.data.image_size,
            "crop": CROP,
        },
        num_examples=len(source),
        # A shard is at least a batch: what is left of a batch is computed and thrown away.
        num_shards=min(config.encode.shards, -(-len(source) // config.encode.batch_size)),
    )
    shards = data.missing_shards(plan)
    done = len(source) - sum(shard.stop - shard.start for shard in shards)
    with progress(f"encode {split}", len(source), "image", done) as advance:
        for shard in shards:
            batches = data.eval_batches(
                source,
                image_size=config.data.image_size,
                crop=CROP,
                batch_size=config.encode.batch_size,
                mirrors=mirrored,
                start=shard.start,
                stop=shard.stop,
                on_damaged=config.data.on_damaged,
            )
            with data.shard_writer(plan, shard) as write, contextlib.closing(batches):
                for batch in batches:
                    preemption.check(f"encode {split}: finished shards are kept")
                    write(*_encode_batch(mesh, tokenizer, batch, mirrored))
                    advance(int((batch["index"] >= 0).sum()))
    if shards or not (cache_path(config, split) / "header.json").exists():
        data.finish_cache(plan)
    count = len(data.open_cache(cache_path(config, split)))
    logger.info("encode %s: %d of %d images are in the cache", split, count, len(source))
    return count, bool(shards)


def _encode_batch(mesh, tokenizer, batch, mirrored):
    """Labels, indices, bits and mirrored bits of the images that the mask keeps."""
    keep = batch["mask"]
    rows = [batch["label"][keep], batch["index"][keep]]
    for name in ("image", "image_mirrored") if mirrored else ("image",):
        images = mesh_lib.put_batch(mesh, {"image": batch[name]})["image"]
        bits = tokens(tokenizer.module, tokenizer.params, images)
        rows.append(mesh_lib.local_rows(bits)[keep])
    return rows


@functools.partial(jax.jit, static_argnums=0)
def tokens(tokenizer: nn.Module, params: dict, images: jax.Array) -> jax.Array:
    """Images uint8 [B, H, W, 3] -> bits {0, 1} [B, N, k] uint8."""
    return tokenizer.apply({"params": params}, data.to_float(images), method=tokenizer.encode)
