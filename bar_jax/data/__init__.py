"""Files on disk -> batches.

`sources` opens images (`folders` lists them, `classes` keeps what their labels are), `images` crops
one, `token_cache` keeps what a tokenizer made of them (`token_writer` writes it),
`published_tokens` reads those of the published code, `stream` says which example comes when, and
`loader` puts batches together. A new source is one function in `sources.py` and one branch of
`open_source`.
"""

from ml_collections import ConfigDict

from bar_jax.data import classes
from bar_jax.data.images import (
    DamagedImage,
    center_crop,
    center_crop_adm,
    mirror,
    random_crop,
    resize_shorter_side,
    to_float,
    to_uint8,
)
from bar_jax.data.loader import eval_batches, token_batches, token_eval_batches, train_batches
from bar_jax.data.published_tokens import (
    TokenFormat,
    files_digest,
    open_published_tokens,
    published_batches,
    published_fingerprint,
)
from bar_jax.data.sources import (
    Subset,
    check_labels,
    digits,
    folder,
    holdout,
    open_source,
    spread,
    tfds,
)
from bar_jax.data.token_cache import TokenCache, open_cache
from bar_jax.data.token_writer import (
    CachePlan,
    Shard,
    all_shards,
    finish_cache,
    missing_shards,
    plan_cache,
    shard_writer,
)
from bar_jax.runtime.errors import InputError


def open_images(config: ConfigDict, validation: bool = False):
    """The training or the validation images that a config describes.

    Raises:
      InputError: if they cannot be opened, or do not have `data.num_classes` classes, or others
        than those that the workdir's tokens are of; or the source holds tokens instead.
    """
    section = config.data
    if section.source == "tokens":
        raise InputError(
            "data.source",
            f"'tokens', which holds no images, for job={config.job}",
            "digits | folder | tfds; job=encode and job=train_generator do without images",
        )
    source = open_source(
        section.source,
        path=section.path,
        name=section.name,
        train_split=section.train_split,
        validation_split=section.validation_split,
        validation=validation,
    )
    check_labels(source, section.num_classes)
    if config.workdir:
        classes.check(config, source.class_names)
    return source


__all__ = [
    "CachePlan",
    "DamagedImage",
    "Shard",
    "Subset",
    "TokenCache",
    "TokenFormat",
    "all_shards",
    "center_crop",
    "center_crop_adm",
    "check_labels",
    "digits",
    "eval_batches",
    "files_digest",
    "finish_cache",
    "folder",
    "holdout",
    "mirror",
    "missing_shards",
    "open_cache",
    "open_images",
    "open_published_tokens",
    "open_source",
    "plan_cache",
    "published_batches",
    "published_fingerprint",
    "random_crop",
    "resize_shorter_side",
    "shard_writer",
    "spread",
    "tfds",
    "to_float",
    "to_uint8",
    "token_batches",
    "token_eval_batches",
    "train_batches",
]
