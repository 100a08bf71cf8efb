"""Captioned images: folders with a file of captions, tar shards, JourneyDB, MS-COCO.

As other sources, these are random-access sequences that can be pickled:
`source[i] -> {"image": RGB PIL image, "captions": (text, ...), "name": str}`, decoded on access.
"""

import csv
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bar_jax.data.folders import NAMED, image_files, list_files
from bar_jax.data.images import decode
from bar_jax.data.tars import TEXT_KEYS, Tars, list_examples, tar_files
from bar_jax.runtime.errors import InputError

logger = logging.getLogger(__name__)
FIELD = "data.path"
# Files of captions that are found by their names, the second ones as Hugging Face's data sets.
FILES = ("captions.jsonl", "captions.csv", "metadata.jsonl", "metadata.csv")
FILE_KEYS = ("file", "file_name", "image")
IMAGES = "images"  # a sub-folder that file names may be relative to

Pairs = Iterable[tuple[str, tuple[str, ...]]]  # image file and its captions


@dataclass(frozen=True)
class Captioned:
    """Image files, relative to `root`, and the captions of each."""

    root: str
    files: list[str] = field(repr=False)
    captions: list[tuple[str, ...]] = field(repr=False)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        name = os.path.join(self.root, self.files[index])
        return {"image": decode(name, name), "captions": self.captions[index], "name": name}


def open_captioned(path: str, captions: str = "", *, index: str = "", on_damaged: str = "skip"):
    """Opens captioned images.

    Args:
      path: a folder of images, or of tar shards with a `.txt` or `.json` beside each image.
      captions: the file of captions, absolute or relative to the folder: `.jsonl` or `.csv` with
        the columns file and caption, JourneyDB's list or MS-COCO's `captions_*.json`. "": the one
        of FILES that is there, else a `.txt` beside each image.
      index: folder where indices of tar shards are kept; "": `.bar_jax` beside the shards.
      on_damaged: an empty caption is named and: skip | refuse.

    Returns:
      a source; an image with several captions has all of them.

    Raises:
      InputError: no captions, two files of them, an unreadable one, or images that are not there.
    """
    if not os.path.isdir(path):
        raise InputError(FIELD, f"no directory {path!r}", "a folder of captioned images")
    if shards := tar_files(path):
        return _open_tars(path, shards, index or os.path.join(path, ".bar_jax"), on_damaged)
    file = _caption_file(Path(path), captions)
    if file is None:
        root, pairs = path, _beside_images(path)
    else:
        pairs = _read(file)
        root, pairs = _located(Path(path), file, pairs)
    files, texts = [], []
    for name, own in _without_empty(pairs, on_damaged):
        files.append(name)
        texts.append(own)
    if not files:
        raise InputError(file or FIELD, "no captions", "at least one image with a caption")
    return Captioned(str(root), files, texts)


def _open_tars(folder: str, shards: list[str], index: str, on_damaged: str) -> Tars:
    paths = [os.path.join(folder, shard) for shard in shards]
    places, captions = [], []
    for shard, offset, size, name, own in list_examples(paths, index):
        if good := _checked(f"{paths[shard]}/{name}", own, on_damaged):
            places.append((shard, offset, size, name))
            captions.append(good)
    if not places:
        found = f"no captioned images in the {len(shards)} tar files of {folder}"
        raise InputError(FIELD, found, "a .txt or .json beside each image")
    return Tars(tuple(paths), places, captions)


def _caption_file(folder: Path, given: str) -> Path | None:
    """The file of captions: the one given, or the only one that is found."""
    if given:
        path = folder / given  # an absolute one stays as it is
        if not path.is_file():
            raise InputError("data.captions", f"no file {path}", "a .jsonl, .csv or .json file")
        return path
    found = [name for name in FILES if (folder / name).is_file()]
    if len(found) > 1:
        told = " and ".join(found)
        raise InputError(FIELD, f"{told} in {folder}", "one of them, named by data.captions")
    return folder / found[0] if found else None


def _read(path: Path) -> dict[str, tuple[str, ...]]:
    """File names and their captions, in the order of the file; rows of one image are put together.

    Raises:
      InputError: naming the file, and the line where there are lines.
    """
    readers = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".json": _json_rows}
    if path.suffix not in readers:
        raise InputError(path, f"the suffix {path.suffix!r}", " | ".join(readers))
    captions: dict[str, tuple[str, ...]] = {}
    try:
        for name, own in readers[path.suffix](path):
            captions[name] = captions.get(name, ()) + own
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(path, f"an unreadable file ({error})", "a file of captions") from error
    return captions


def _jsonl_rows(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}:{number}", f"no JSON ({error})", "an object") from error
            yield _pair(f"{path}:{number}", row if isinstance(row, dict) else {})


def _csv_rows(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        for row in rows:
            yield _pair(f"{path}:{rows.line_num}", row)


def _pair(where: str, row: Mapping[str, object]) -> tuple[str, tuple[str, ...]]:
    name = next((row[key] for key in FILE_KEYS if isinstance(row.get(key), str)), None)
    text = next((row[key] for key in TEXT_KEYS if row.get(key) is not None), None)
    if name is None or text is None:
        keys = f"{' | '.join(FILE_KEYS)} and {' | '.join(TEXT_KEYS)}"
        raise InputError(where, f"the keys {', '.join(map(str, row))}", keys)
    return name, tuple(text) if isinstance(text, list) else (text,)


def _json_rows(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """JourneyDB's list of (file, caption, ...), or MS-COCO's images and annotations."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(path, f"no JSON ({error})", "a list, or MS-COCO's object") from error
    try:
        if isinstance(stored, dict):
            own: dict[int, list[str]] = {}
            for annotation in stored["annotations"]:
                own.setdefault(annotation["image_id"], []).append(annotation["caption"])
            for image in stored["images"]:
                yield image["file_name"], tuple(own.get(image["id"], ()))
        else:
            for name, caption, *_ in stored:
                yield name, (caption,)
    except (KeyError, TypeError, ValueError) as error:
        expected = "a list of [file, caption, ...], or MS-COCO's images and annotations"
        raise InputError(path, f"other entries ({error!r})", expected) from error


def _beside_images(path: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Images with the text of the `.txt` file of the same name, a caption in each line."""
    texts = {os.path.splitext(name)[0] for name in list_files(path) if name.endswith(".txt")}
    images = image_files(path)
    if not texts:
        expected = f"{' | '.join(FILES)}, a .txt beside each image, or data.captions"
        raise InputError(FIELD, f"no captions in {path}", expected)
    without = [name for name in images if os.path.splitext(name)[0] not in texts]
    _refuse_missing(FIELD, without, len(images), "a .txt beside each image")
    for name in images:
        file = Path(path, name).with_suffix(".txt")
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(file, f"an unreadable file ({error})", "a caption") from error
        yield name, tuple(line for line in lines if line.strip())


def _located(folder: Path, file: Path, captions: Mapping[str, tuple[str, ...]]):
    """The folder that file names are relative to, and the pairs.

    Raises:
      InputError: some of the images are not there.
    """
    missing = {}
    for root in (folder, folder / IMAGES):
        present = (
            {os.path.normpath(name) for name in list_files(str(root))} if root.is_dir() else ()
        )
        missing[root] = [name for name in captions if os.path.normpath(name) not in present]
    root = min(missing, key=lambda root: len(missing[root]))
    _refuse_missing(file, missing[root], len(captions), f"images in {folder}")
    return root, captions.items()


def _refuse_missing(where: object, names: list[str], total: int, expected: str) -> None:
    if names:
        told = ", ".join(names[:NAMED]) + ", ..." * (len(names) > NAMED)
        raise InputError(where, f"{len(names)} of {total} missing: {told}", expected)


def _without_empty(pairs: Pairs, on_damaged: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, captions in pairs:
        if good := _checked(name, captions, on_damaged):
            yield name, good


def _checked(name: str, captions: Iterable[object], on_damaged: str) -> tuple[str, ...]:
    """The captions of one image that hold something; the others are named, or refused.

    Raises:
      InputError: an empty caption, or what is no text, where `on_damaged` is refuse.
    """
    captions = tuple(captions)
    good = tuple(text.strip() for text in captions if isinstance(text, str) and text.strip())
    if len(good) < len(captions) or not captions:
        found = f"{len(captions) - len(good)} of {len(captions)} captions empty"
        if on_damaged == "refuse":
            raise InputError(name, found, 'a text, or data.on_damaged="skip"')
        logger.warning("%s: %s, left out", name, found)
    return good
