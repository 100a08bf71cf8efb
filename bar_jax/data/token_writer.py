"""Writes a cache of tokens (format: `token_cache.py`) so that a killed encoder can go on.

    plan = plan_cache(path, fingerprint=..., ...)
    for shard in missing_shards(plan):                      # each by one process
        with shard_writer(plan, shard) as write:
            write(labels, indices, tokens, tokens_mirrored)  # of source[shard.start:shard.stop]
    finish_cache(plan)                                      # one process, after all are done

plan.json is written first; every file gets its name when it is complete; header.json comes last.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from bar_jax.data.token_cache import (
    DTYPES,
    FORMAT,
    VERSION,
    read_fields,
    record_dtype,
    refuse_difference,
    shard_path,
)
from bar_jax.runtime.errors import InputError, SaveError
from bar_jax.runtime.files import write_atomically

# One record a group for random access. Bits and latents of a good tokenizer do not compress, and
# leaving compression out makes reading and writing three times as fast.
_WRITER_OPTIONS = "group_size:1,uncompressed"


@dataclass(frozen=True)
class CachePlan:
    """What a cache is to hold. `fields` are those of plan.json; see `plan_cache`."""

    path: Path
    fields: dict


@dataclass(frozen=True)
class Shard:
    """Shard `number` holds the examples `start` to `stop` of the source."""

    number: int
    start: int
    stop: int


def plan_cache(
    path: str | os.PathLike,
    *,
    fingerprint: str,
    dtype: str,
    width: int,
    grid: Sequence[int],
    num_classes: int,
    mirrored: bool,
    preprocessing: dict,
    num_examples: int,
    num_shards: int,
    older: Sequence[str] = (),
) -> CachePlan:
    """Starts a cache, or continues one that was started with the same fields.

    Every process of a run may call this.

    Args:
      path: the cache's folder, made if need be.
      fingerprint: names the tokenizer and its weights; another one's tokens are never mixed in.
      dtype: what a token is made of: `bits`, `uint8` or `float32`.
      width: K, how many of them.
      grid: (h, w) of the tokens, N = h * w.
      num_classes: labels are 0 to num_classes - 1.
      mirrored: whether every record also holds the tokens of the mirror image.
      preprocessing: JSON-able; what was done to the images (source, crop, size, ...).
      num_examples: length of the source.
      num_shards: number of files; a cache that was started keeps its own.
      older: fingerprints that the same tokens may have in a cache that was started before.

    Raises:
      InputError: the folder holds a cache with other fields, or shards without a plan.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    fields = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": fingerprint,
        "dtype": dtype,
        "width": width,
        "grid": list(grid),
        "num_classes": num_classes,
        "mirrored": mirrored,
        "preprocessing": preprocessing,
        "num_examples": num_examples,
        "num_shards": max(1, min(num_shards, num_examples)),
    }
    fields = json.loads(json.dumps(fields))  # as they read back: tuples become lists
    # Asked first: another process may write the plan and start a shard between the two questions.
    has_shards = any(path.glob("tokens-*"))
    if not (path / "plan.json").exists():
        if has_shards:
            raise InputError(path, "shards without a plan.json", "an empty folder")
        _write_json(path / "plan.json", fields)
        return CachePlan(path, fields)
    started = read_fields(path / "plan.json")
    for name, value in fields.items():
        if name == "fingerprint" and started.get(name) in older:
            continue
        if name != "num_shards":
            refuse_difference(path, name, started.get(name), value)
    return CachePlan(path, started)


def all_shards(plan: CachePlan) -> list[Shard]:
    """The shards of a cache, written or not."""
    num_shards, size = plan.fields["num_shards"], plan.fields["num_examples"]
    return [
        Shard(number, size * number // num_shards, size * (number + 1) // num_shards)
        for number in range(num_shards)
    ]


def missing_shards(plan: CachePlan) -> list[Shard]:
    """The shards that are still to be written."""
    # Listed: a network file system may remember of a single file that it was not there.
    written, num_shards = set(os.listdir(plan.path)), plan.fields["num_shards"]
    path = lambda shard: shard_path(plan.path, shard.number, num_shards)
    return [shard for shard in all_shards(plan) if path(shard).name not in written]


@contextlib.contextmanager
def shard_writer(plan: CachePlan, shard: Shard) -> Iterator[Callable]:
    """Gives the function that writes a shard's examples; the shard exists once the block ends.

    The function is `write(labels, indices, tokens, tokens_mirrored=None)`: `labels [B]` in
    range(num_classes), `indices [B]` in range(shard.start, shard.stop), `tokens [B, N, K]` of the
    plan's dtype (bits: uint8 in {0, 1}), and the mirror images' if the plan says so. Examples may
    be left out (damaged images), and a batch may be empty. If the block raises, there is no shard.

    Raises:
      InputError: a label out of range (by `write`).
      ValueError: indices or tokens that do not fit the plan, or are not finite (by `write`).
      SaveError: the shard could not be written, as when the disk is full.
    """
    final = shard_path(plan.path, shard.number, plan.fields["num_shards"])
    unfinished = final.with_name(final.name + ".tmp")  # what a killed writer left is overwritten
    writer = ArrayRecordWriter(str(unfinished), _WRITER_OPTIONS)

    def write(labels, indices, tokens, tokens_mirrored=None) -> None:
        for record in _pack(plan.fields, shard, labels, indices, tokens, tokens_mirrored):
            with _writing(unfinished):
                writer.write(record.tobytes())

    try:
        yield write
        with _writing(unfinished):
            writer.close()
    except BaseException:
        with contextlib.suppress(RuntimeError):  # the failure is already reported
            writer.close()
        unfinished.unlink()
        raise
    _publish(unfinished, final)


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Reports a failed write, as on a full disk: ArrayRecord's errors have no errno."""
    try:
        yield
    except RuntimeError as error:
        raise SaveError(f"{file}: a shard could not be written ({error})") from error


def finish_cache(plan: CachePlan) -> None:
    """Counts the shards and writes header.json, with which the cache is complete.

    Raises:
      InputError: shards are missing, or there is not one example in them.
    """
    num_shards = plan.fields["num_shards"]
    missing = missing_shards(plan)
    if missing:
        raise InputError(
            plan.path,
            f"{num_shards - len(missing)} of {num_shards} shards",
            "all of them: run job=encode again, it goes on",
        )
    files = [shard_path(plan.path, number, num_shards) for number in range(num_shards)]
    shards = [
        {
            "file": file.name,
            "count": ArrayRecordReader(str(file)).num_records(),
            "bytes": file.stat().st_size,
        }
        for file in files
    ]
    count = sum(shard["count"] for shard in shards)
    if not count:
        raise InputError(plan.path, "no example in any shard", "at least one readable image")
    _write_json(plan.path / "header.json", {**plan.fields, "count": count, "shards": shards})


def _pack(fields, shard, labels, indices, tokens, tokens_mirrored) -> np.ndarray:
    """`[B]` of `record_dtype`."""
    labels, indices = np.asarray(labels), np.asarray(indices)
    num_classes = fields["num_classes"]
    for label in labels[(labels < 0) | (labels >= num_classes)]:
        raise InputError("data.num_classes", f"label {label}", f"0 to {num_classes - 1}")
    if np.any((indices < shard.start) | (indices >= shard.stop)):
        raise ValueError(f"indices {indices} outside of {shard}")
    if (tokens_mirrored is not None) != fields["mirrored"]:
        raise ValueError(f"tokens_mirrored do not go with mirrored={fields['mirrored']}")
    records = np.empty(len(labels), record_dtype(fields))
    records["label"] = labels
    records["index"] = indices
    for name, array in {"tokens": tokens, "tokens_mirrored": tokens_mirrored}.items():
        if array is not None:
            records[name] = _pack_tokens(fields, name, np.asarray(array), len(labels))
    return records


def _pack_tokens(fields, name, tokens, count) -> np.ndarray:
    """Tokens [B, N, K] as a record holds them, [B, size]."""
    num_tokens, kind = fields["grid"][0] * fields["grid"][1], fields["dtype"]
    shape = (count, num_tokens, fields["width"])
    good = tokens.shape == shape and tokens.dtype == DTYPES[kind]
    if not good or (kind == "bits" and np.any(tokens > 1)):
        found = f"{name}: {tokens.dtype} {tokens.shape}"
        raise ValueError(f"{found}, expected {kind} {shape}" + ", 0 or 1" * (kind == "bits"))
    if kind == "float32" and not np.all(np.isfinite(tokens)):
        raise ValueError(f"{name}: numbers that are not finite")
    flat = tokens.reshape(count, num_tokens * fields["width"])
    return np.packbits(flat, axis=1) if kind == "bits" else flat


def _write_json(file: Path, fields: dict) -> None:
    write_atomically(file, json.dumps(fields, indent=2).encode())


def _publish(unfinished: Path, final: Path) -> None:
    """Gives a complete file its name, which a reader sees whole or not at all."""
    handle = os.open(unfinished, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    os.replace(unfinished, final)
