"""The cache of tokens: what the tokenizer made of every image, on disk, made once.

    cache/plan.json                             what is being encoded; see `token_writer.py`
    cache/tokens-00000-of-00004.array_record    a contiguous range of the source each
    cache/header.json                           the plan and the shards' sizes: it is complete

A record is a little-endian int32 label, an int64 index into the source, the image's N tokens of
K numbers each and, in a mirrored cache, those of its mirror image. Bits are packed into bytes
(`np.packbits`), uint8 and float32 stand as they are. Paths are local or on a mounted file system.

Version 1 held bits alone and named their K `bits`; such caches are read, and finished.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader

from bar_jax.runtime.errors import InputError

FORMAT = "bar_jax.tokens"
VERSION = 2
DTYPES = {"bits": np.uint8, "uint8": np.uint8, "float32": np.dtype("<f4")}  # of what is read

# Larger caches are read from disk as they are needed. ImageNet in 256 tokens of 16 bits, with
# mirror images, is 1.3 GB; in moments of 16 channels it is 84 GB.
IN_MEMORY_BYTES = 2 * 2**30


class TokenCache:
    """A finished cache, as a random-access sequence; made by `open_cache`.

    `cache[i]` is a dict of `tokens [N, K]` (bits: uint8 in {0, 1}), `label`, `index` (into the
    source that was encoded) and, in a mirrored cache, `tokens_mirrored`. Pickling keeps the path
    and reads the files anew. `cache.header` has the fields of `plan_cache`.
    """

    def __init__(self, path: Path, header: dict):
        self.path = path
        self.header = header
        self.mirrored: bool = header["mirrored"]
        self.num_classes: int = header["num_classes"]
        self.num_tokens: int = header["grid"][0] * header["grid"][1]
        self.dtype: str = header["dtype"]
        self.width: int = header["width"]
        files = [str(path / shard["file"]) for shard in header["shards"]]
        if header["count"] * record_dtype(header).itemsize <= IN_MEMORY_BYTES:
            self._records = _load(files, header)
        else:
            self._records = None
            self._disk = ArrayRecordDataSource(files)

    def __len__(self) -> int:
        return self.header["count"]

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return {name: array[0] for name, array in self.read([index]).items()}

    def __reduce__(self):
        return TokenCache, (self.path, self.header)

    def read(self, indices: Sequence[int]) -> dict:
        """Many examples at once: what `cache[i]` gives, with a leading axis; own memory."""
        indices = np.asarray(indices)
        if self._records is not None:
            records = self._records[indices]
        else:
            records = np.frombuffer(b"".join(self._read(indices)), record_dtype(self.header))
        examples = {"label": records["label"].copy(), "index": records["index"].copy()}
        # Here, where values are at hand: a compiled step takes a label past the end for the last.
        for label in examples["label"][examples["label"] // self.num_classes != 0]:
            found = f"an example with label {label}"
            raise InputError(self.path, found, f"labels from 0 to {self.num_classes - 1}")
        for name in ("tokens", "tokens_mirrored")[: 1 + self.mirrored]:
            flat = records[name]
            if self.dtype == "bits":
                flat = np.unpackbits(flat, axis=1, count=self.num_tokens * self.width)
            else:
                flat = flat.copy()
            examples[name] = flat.reshape(-1, self.num_tokens, self.width)
        return examples

    def _read(self, indices: np.ndarray) -> list[bytes]:
        """Records from the disk; InputError names the shard of one that is not there whole."""
        try:
            read = self._disk.__getitems__(indices.tolist())
            error = None
        except RuntimeError as raised:
            read, error = [], raised
        size = record_dtype(self.header).itemsize
        # Of a shard that was cut off after it had been opened the records are missing or empty.
        if [len(record) for record in read] == [size] * len(indices):
            return read
        if len(indices) > 1:  # which one?
            return [record for index in indices for record in self._read(index[None])]
        stops = np.cumsum([shard["count"] for shard in self.header["shards"]])
        shard = self.header["shards"][int(np.searchsorted(stops, indices[0], side="right"))]
        found = f"a damaged shard ({error or 'records are missing'})"
        raise InputError(self.path / shard["file"], found, "an intact file") from error


def open_cache(
    path: str | os.PathLike,
    *,
    fingerprint: str | None = None,
    older: Sequence[str] = (),
    dtype: str | None = None,
    width: int | None = None,
    grid: Sequence[int] | None = None,
    num_classes: int | None = None,
) -> TokenCache:
    """Opens a finished cache, after checking that it is whole and the one that is expected.

    Args:
      path: the cache's folder.
      fingerprint, older, dtype, width, grid, num_classes: what the caller needs it to be, as
        `plan_cache` has it; None takes any.

    Raises:
      InputError: no cache, an unfinished or damaged one, or one of another tokenizer; names the
        file.
    """
    path = Path(path)
    if not (path / "header.json").exists():
        started = (path / "plan.json").exists()
        raise InputError(
            path,
            "an unfinished cache" if started else "no cache of tokens",
            "a finished one: run job=encode" + (" again, it goes on" if started else ""),
        )
    header = read_fields(path / "header.json")
    needed = {"format": FORMAT, "version": VERSION, "fingerprint": fingerprint}
    needed |= {"dtype": dtype, "width": width, "num_classes": num_classes}
    needed["grid"] = None if grid is None else list(grid)
    for name, value in needed.items():
        if value is not None and not (name == "fingerprint" and header.get(name) in older):
            refuse_difference(path, name, header.get(name), value)
    for shard in header["shards"]:
        file = path / shard["file"]
        size = file.stat().st_size if file.exists() else 0
        # A truncated ArrayRecord opens without complaint and has no records.
        if size != shard["bytes"] or ArrayRecordReader(str(file)).num_records() != shard["count"]:
            raise InputError(
                file,
                f"{size} bytes",
                f"{shard['count']} examples in {shard['bytes']} bytes; delete the file and"
                " header.json, then run job=encode again",
            )
    return TokenCache(path, header)


def _load(files: list[str], header: dict) -> np.ndarray:
    """All records, `[count]` of `record_dtype`."""
    records = np.empty(header["count"], record_dtype(header))
    filled = 0
    for file, shard in zip(files, header["shards"], strict=True):
        reader = ArrayRecordReader(file)
        for start in range(0, shard["count"], 8192):  # not twice the cache in memory
            stop = min(start + 8192, shard["count"])
            try:
                part = np.frombuffer(b"".join(reader.read(start, stop)), records.dtype)
                records[filled : filled + stop - start] = part
            except (RuntimeError, ValueError) as error:
                raise InputError(file, f"damaged records ({error})", "an intact file") from error
            filled += stop - start
    return records


# --- shared with the writer ----------------------------------------------------------------------


def record_dtype(fields: dict) -> np.dtype:
    """The layout of a record, given the fields of plan.json."""
    size = fields["grid"][0] * fields["grid"][1] * fields["width"]
    size = -(-size // 8) if fields["dtype"] == "bits" else size
    stored = (DTYPES[fields["dtype"]], (size,))
    layout = [("label", "<i4"), ("index", "<i8"), ("tokens", *stored)]
    if fields["mirrored"]:
        layout.append(("tokens_mirrored", *stored))
    return np.dtype(layout)


def refuse_difference(path: Path, name: str, found, expected) -> None:
    """Raises InputError if a cache's field is not the expected one."""
    if found != expected:
        raise InputError(
            path,
            f"a cache of tokens with {name} {found!r}",
            f"{expected!r}; use another workdir or delete this folder",
        )


def shard_path(path: Path, number: int, num_shards: int) -> Path:
    """The file of a shard."""
    return path / f"tokens-{number:05d}-of-{num_shards:05d}.array_record"


def read_fields(file: Path) -> dict:
    """What is in plan.json or header.json, as of this version; InputError if it cannot be read."""
    fields = read_json(file)
    if fields.get("version") == 1:
        fields |= {"version": VERSION, "dtype": "bits", "width": fields.pop("bits", None)}
    return fields


def read_json(file: Path) -> dict:
    """What is in a cache's JSON file; InputError if it cannot be read."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(file, f"an unreadable file ({error})", "JSON of a token cache") from error
