"""Tar shards of captioned images, as webdataset writes them, read in place.

A member's key is its name up to the first dot of its last part; the image and the `.txt` or `.json`
of one key are an example. An index of each shard, with the captions, is made once.
"""

import io
import json
import logging
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bar_jax.data.folders import image_suffixes
from bar_jax.data.images import DamagedImage, decode
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.files import write_atomically

logger = logging.getLogger(__name__)
VERSION = 1  # of the indices
TEXT_KEYS = ("caption", "captions", "text")  # of a .json


@dataclass(frozen=True)
class Tars:
    """Images inside of tar files: (shard, offset, size, name) of each, and its captions."""

    shards: tuple[str, ...]
    places: list[tuple[int, int, int, str]] = field(repr=False)
    captions: list[tuple[str, ...]] = field(repr=False)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict:
        shard, offset, size, name = self.places[index]
        name = f"{self.shards[shard]}/{name}"
        try:
            with open(self.shards[shard], "rb") as file:
                file.seek(offset)
                image = decode(io.BytesIO(file.read(size)), name)
        except OSError as error:
            raise DamagedImage(name, str(error)) from error
        return {"image": image, "captions": self.captions[index], "name": name}


def tar_files(folder: str) -> list[str]:
    """Names of the tar files in a folder, sorted."""
    return sorted(name for name in os.listdir(folder) if name.endswith(".tar"))


def list_examples(paths: Sequence[str], index: str) -> list[tuple[int, int, int, str, list]]:
    """(shard, offset, size, name, captions) of every image in tar files, which are listed once.

    Args:
      index: folder that the lists are kept in; if it cannot be written to, they are made again.

    Raises:
      InputError: a damaged shard.
    """
    return [
        (number, *example)
        for number, path in enumerate(paths)
        for example in _listed(path, os.path.join(index, f"{os.path.basename(path)}.json"))
    ]


def _listed(path: str, index: str) -> list:
    """[offset, size, name, captions] of each image in a shard, from the index if it is of it."""
    stat = os.stat(path)
    state = [VERSION, stat.st_size, stat.st_mtime_ns]
    try:
        stored = json.loads(Path(index).read_text())
        if stored["state"] == state:
            return stored["examples"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    examples = _list(path)
    try:
        Path(index).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(index, json.dumps({"state": state, "examples": examples}).encode())
    except OSError as error:
        logger.warning("%s: its index is not kept (%s)", path, error)
    return examples


def _list(path: str) -> list:
    images: dict[str, tuple[int, int, str]] = {}
    captions: dict[str, list] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, base = os.path.split(member.name)
                stem, _, suffix = base.partition(".")
                key, suffix = f"{folder}/{stem}", suffix.lower()
                if f".{suffix}" in image_suffixes():
                    images[key] = (member.offset_data, member.size, member.name)
                elif suffix in ("txt", "json"):
                    captions.setdefault(key, []).extend(_captions(tar.extractfile(member), suffix))
    except (tarfile.TarError, OSError, ValueError) as error:
        raise InputError(path, f"a damaged tar file ({error})", "a whole one") from error
    return [[*images[key], captions.get(key, [])] for key in images]


def _captions(file, suffix: str) -> list:
    text = file.read().decode()
    if suffix == "txt":
        return [line for line in text.splitlines() if line.strip()]
    stored = json.loads(text)
    found = next((stored[key] for key in TEXT_KEYS if key in stored), [])
    return found if isinstance(found, list) else [found]
