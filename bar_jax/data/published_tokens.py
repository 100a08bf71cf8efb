"""Tokens that published code cached: one `.npz` per image, in one folder per class.

Of BAR-FSQ, the arrays `tokens` and `tokens_flip` (of the mirror image) are bool or uint8 [N * K] in
{0, 1}: token after token in raster order, the K bits of each side by side. Of KL-16 (MAR's cache),
`moments` and `moments_flip` are float32 [K, h, w]: means, then log-variances, of every token.
Labels are the places of the class folders in order (`folders.by_number`), so ImageNet's synset
names give its usual labels. `job=encode` packs the files into a token cache (`token_cache.py`),
which is what is trained on.
"""

import hashlib
import io
import logging
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from bar_jax.data import stream
from bar_jax.data.folders import check_same_classes, class_folders, split_root
from bar_jax.data.images import DamagedImage
from bar_jax.data.loader import MAX_DAMAGED_IN_A_ROW
from bar_jax.data.sources import HOLDOUT_EVERY, holdout
from bar_jax.data.token_cache import DTYPES
from bar_jax.runtime.errors import InputError

logger = logging.getLogger(__name__)
_PROBES = 16  # files that the fingerprint reads
FILES_PER_BATCH = 256


class TokenFormat(NamedTuple):
    """What a file holds: N = h * w tokens of K bits (`bits`) or K moments (`float32`) each."""

    dtype: str
    width: int  # K
    grid: tuple[int, int]  # h, w

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.grid[0] * self.grid[1], self.width

    @property
    def array(self) -> str:
        """The name of the array; that of the mirror image's ends in `_flip`."""
        return "tokens" if self.dtype == "bits" else "moments"


@dataclass(frozen=True)
class PublishedTokens:
    """The files of one split; `files[i]` is relative to `root`.

    `source[i]` is a dict of `tokens [N, K]`, `label` and, if mirrored, `tokens_mirrored`; it raises
    `DamagedImage` if the file is not what it should be.
    """

    root: str
    files: list[str] = field(repr=False)
    labels: np.ndarray = field(repr=False)
    class_names: tuple[str, ...]
    token_format: TokenFormat
    mirrored: bool

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        example = {"label": int(self.labels[index])}
        return example | read_tokens(
            os.path.join(self.root, self.files[index]), self.token_format, self.mirrored
        )


def open_published_tokens(
    path: str,
    train_split: str,
    validation_split: str,
    *,
    validation: bool,
    token_format: TokenFormat,
    mirrored: bool,
) -> PublishedTokens:
    """Lists the files of the training or the validation split; opens none of them.

    Args:
      path: the root.
      train_split: sub-directory of `path` with the class folders, or "" for `path` itself.
      validation_split: the same; "" holds out every 20th training file; the training directory
        itself ("." if that is `path`) holds out nothing and validates on every 20th.
      validation: which of the two to open.
      token_format: what a file holds.
      mirrored: whether the mirror image's tokens are read, too.

    Raises:
      InputError: no such directory, no class folders, no files in them, or other classes in the
        two splits.
    """
    trained = split_root(path, train_split)
    root = split_root(path, validation_split) if validation and validation_split else trained
    source = _list(root, token_format, mirrored)
    if not validation_split:
        kept = holdout(source, validation=validation).indices
    elif validation and os.path.samefile(root, trained):
        kept = np.arange(0, len(source), HOLDOUT_EVERY)
    else:
        check_same_classes(source.class_names, class_folders(trained))
        return source
    return replace(source, files=[source.files[i] for i in kept], labels=source.labels[kept])


def _list(root: str, token_format: TokenFormat, mirrored: bool) -> PublishedTokens:
    # A million files: one scandir per class, and no stat of any.
    class_names = class_folders(root)
    files, labels = [], []
    for label, class_name in enumerate(class_names):
        found = [os.path.join(class_name, name) for name in _npz_files(root, class_name)]
        files += found
        labels.append(np.full(len(found), label, np.int32))
    if not files:
        found = f"no .npz files in the {len(class_names)} class folders of {root}"
        raise InputError("data.path", found, "one .npz of tokens per image, as the published code")
    return PublishedTokens(root, files, np.concatenate(labels), class_names, token_format, mirrored)


def _npz_files(root: str, class_name: str) -> list[str]:
    with os.scandir(os.path.join(root, class_name)) as entries:
        names = (entry.name for entry in entries)
        return sorted(n for n in names if n.endswith(".npz") and not n.startswith("."))


def read_tokens(file: str, token_format: TokenFormat, mirrored: bool) -> dict[str, np.ndarray]:
    """`tokens` and, if mirrored, `tokens_mirrored` of one file, [N, K]; nothing is unpickled.

    Raises:
      DamagedImage: a file that cannot be read, lacks an array, or has another shape, type or value.
    """
    read = _read_bits if token_format.dtype == "bits" else _read_moments
    try:
        with open(file, "rb") as opened:
            content = io.BytesIO(opened.read())  # at once: zipfile reads in many small pieces
        with zipfile.ZipFile(content) as archive:
            names = {"tokens": token_format.array, "tokens_mirrored": f"{token_format.array}_flip"}
            wanted = list(names.items())[: 1 + mirrored]
            return {to: read(name, _read_array(archive, name), token_format) for to, name in wanted}
    except Exception as error:  # the parsers of zipfile and NumPy raise nearly anything
        raise DamagedImage(file, str(error) or type(error).__name__) from error


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    if f"{name}.npy" not in archive.namelist():
        raise ValueError(f"no array {name!r}")
    content = io.BytesIO(archive.read(f"{name}.npy"))  # checks the sum of the bytes, too
    return np.lib.format.read_array(content, allow_pickle=False)


def _read_bits(name: str, array: np.ndarray, token_format: TokenFormat) -> np.ndarray:
    """Bits of a file's array, uint8 [N, K]."""
    num_tokens, width = token_format.shape
    size = num_tokens * width
    if array.dtype not in (np.bool_, np.uint8) or array.shape != (size,):
        found = f"{name}: {array.dtype}{list(array.shape)}"
        raise ValueError(f"{found}, not bool[{size}] of {num_tokens} tokens of {width} bits")
    bits = array.view(np.uint8)
    if bits.max() > 1:
        raise ValueError(f"{name}: values up to {bits.max()}, not bits")
    return bits.reshape(token_format.shape)


def _read_moments(name: str, array: np.ndarray, token_format: TokenFormat) -> np.ndarray:
    """Moments of a file's array, float32 [N, K], own memory."""
    shape = [token_format.width, *token_format.grid]
    if array.dtype != np.float32 or list(array.shape) != shape:
        found = f"{name}: {array.dtype}{list(array.shape)}"
        tokens = f"{token_format.width} moments of {shape[1]} x {shape[2]} tokens"
        raise ValueError(f"{found}, not float32{shape}, {tokens}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: numbers that are not finite")
    return np.ascontiguousarray(array.reshape(token_format.width, -1).T)


def published_batches(
    source: PublishedTokens, start: int, stop: int, *, on_damaged: str
) -> Iterator[dict]:
    """The tokens of source[start:stop] in order, read ahead in threads.

    Args:
      on_damaged: `skip` warns of a damaged file and leaves it out; `refuse` raises.

    Returns:
      a generator, for every FILES_PER_BATCH files, of `label [b] int32`, `index [b] int64` into the
      source, `tokens [b, N, K]` and, if mirrored, `tokens_mirrored`; b is less where files are
      damaged.

    Raises:
      InputError: while iterating, if a damaged file is refused, or batch after batch holds not one
        readable file, 100 files or more.
    """
    read = partial(_read_batch, source=source, start=start, stop=stop)
    batches = stream.prefetch(read, 0, -(-(stop - start) // FILES_PER_BATCH))
    unreadable = 0  # files in a row
    with closing(batches):
        for batch in batches:
            damaged = batch.pop("damaged")
            unreadable = 0 if len(batch["index"]) else unreadable + len(damaged)
            if unreadable >= MAX_DAMAGED_IN_A_ROW:
                found = f"no readable file in {unreadable}, such as {': '.join(damaged[-1])}"
                raise InputError("data.path", found, "tokens of the configured tokenizer")
            for name, reason in damaged:
                if on_damaged == "refuse":
                    expected = 'a readable one, or data.on_damaged="skip"'
                    raise InputError(name, f"damaged tokens ({reason})", expected)
                logger.warning("Skipped damaged tokens: %s (%s)", name, reason)
            yield batch


def _read_batch(number: int, *, source: PublishedTokens, start: int, stop: int) -> dict:
    first = start + number * FILES_PER_BATCH
    indices, examples, damaged = [], [], []
    for index in range(first, min(first + FILES_PER_BATCH, stop)):
        try:
            examples.append(source[index])
            indices.append(index)
        except DamagedImage as error:
            damaged.append((error.name, error.reason))
    batch = {
        "label": np.asarray([example["label"] for example in examples], np.int32),
        "index": np.asarray(indices, np.int64),
        "damaged": damaged,
    }
    empty = np.empty((0, *source.token_format.shape), DTYPES[source.token_format.dtype])
    for name in ("tokens", "tokens_mirrored")[: 1 + source.mirrored]:
        tokens = [example[name] for example in examples]
        batch[name] = np.stack(tokens) if tokens else empty
    return batch


# --- which tokens these are ----------------------------------------------------------------------


def published_fingerprint(path: str, splits: Sequence[str]) -> str:
    """Names published tokens by their content, wherever they lie: `published-...`.

    A hash of the class names and of the first file of 16 classes, evenly chosen, in each split:
    cheap enough for every start, and another tokenizer writes other files.
    """
    digest = hashlib.sha256()
    for root in dict.fromkeys(os.path.normpath(split_root(path, split)) for split in splits):
        class_names = class_folders(root)
        digest.update("\n".join(class_names).encode())
        for class_name in class_names[:: -(-len(class_names) // _PROBES)]:
            for name in _npz_files(root, class_name)[:1]:
                with open(os.path.join(root, class_name, name), "rb") as file:
                    digest.update(file.read())
    return f"published-{digest.hexdigest()[:16]}"


def files_digest(source: PublishedTokens) -> str:
    """Names the list of files: if it changed, an unfinished cache cannot go on."""
    return hashlib.sha256("\n".join(source.files).encode()).hexdigest()[:16]
