"""Sets of finished images, to be measured as they are: an .npz of the ADM format, or a folder.

A set is a source (see `sources.py`) and more: `unlabelled` says why its labels mean nothing, "" if
they do, `size` is the images' height and width, `settings` what they were made with as far as the
file says.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from bar_jax.data.folders import READABLE, by_number, image_files
from bar_jax.data.images import DamagedImage, decode
from bar_jax.runtime.errors import InputError

IMAGES, LABELS, SETTINGS = "arr_0", "arr_1", "settings"
NO_LABELS = "the samples have no labels"


# --- .npz ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageArray:
    """Images uint8 [N, H, W, 3] of an array, which may be mapped from a file."""

    images: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    name: str
    num_classes: int
    unlabelled: str
    settings: dict = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        return self.images.shape[1:3]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        image = Image.fromarray(np.asarray(self.images[index]))
        return {"image": image, "label": int(self.labels[index]), "name": f"{self.name}[{index}]"}


def open_npz(path: str | os.PathLike, num_classes: int | None) -> ImageArray:
    """The images of an .npz as ADM writes it.

    An array that is stored uncompressed (as `np.savez` does) is mapped, not read: 50,000 images of
    256 px are 10 GB.

    Args:
      path: holds `arr_0`, uint8 [N, H, W, 3]; it may hold `arr_1`, labels [N], and `settings`.
      num_classes: that labels must be in; None: labels do not matter and are not read.

    Raises:
      InputError: naming the file and what is wrong with it.
    """
    path = Path(path)
    names = npz_names(path)
    if IMAGES not in names:
        found = f"{', '.join(names) or 'nothing'}"
        raise InputError(path, found, f"{IMAGES}, uint8 images [N, H, W, 3]")
    images = read_array(path, IMAGES)
    _check_images(path, images)
    labels = read_array(path, LABELS) if LABELS in names and num_classes else None
    if labels is not None:
        _check_labels(path, labels, len(images), num_classes)
    settings = {}
    if SETTINGS in names:
        try:
            settings = json.loads(str(read_array(path, SETTINGS)))
        except ValueError as error:
            raise InputError(f"{path}: {SETTINGS}", str(error), "JSON") from error
    unlabelled = NO_LABELS if labels is None else ""
    labels = np.zeros(len(images), np.int32) if unlabelled else labels.astype(np.int32)
    return ImageArray(images, labels, str(path), num_classes or 1, unlabelled, settings)


def npz_names(path: Path) -> list[str]:
    """The arrays that an .npz holds.

    Raises:
      InputError: there is no such file, or it cannot be read.
    """
    if not path.is_file():
        raise InputError(path, "no such file", "an .npz of images; job=sample writes one")
    try:
        with zipfile.ZipFile(path) as file:
            return [name.removesuffix(".npy") for name in file.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(path, f"an unreadable file ({error})", "an .npz of images") from error


def read_array(path: Path, name: str) -> np.ndarray:
    """One array of an .npz: mapped if it is stored uncompressed, else read.

    Raises:
      InputError: naming the file and the array that cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as file:
            member = file.getinfo(f"{name}.npy")
            if member.compress_type != zipfile.ZIP_STORED:
                with file.open(member) as stream:
                    return np.lib.format.read_array(stream, allow_pickle=False)
            with file.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                read = {(1, 0): np.lib.format.read_array_header_1_0}
                read = read.get(version, np.lib.format.read_array_header_2_0)
                shape, fortran, dtype = read(stream)
                inside = stream.tell()
        if dtype.hasobject:
            raise ValueError("an array of Python objects")
        if not shape:  # a scalar cannot be mapped
            with np.load(path, allow_pickle=False) as stored:
                return stored[name]
        # In front of a member stands its local header, whose length the directory does not give.
        with path.open("rb") as file:
            file.seek(member.header_offset + 26)
            lengths = np.frombuffer(file.read(4), "<u2").astype(int)
        offset = member.header_offset + 30 + int(lengths.sum()) + inside
        order = "F" if fortran else "C"
        return np.memmap(path, dtype, "r", offset, shape, order)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        found = f"an unreadable array ({error})"
        raise InputError(f"{path}: {name}", found, "one that numpy wrote, whole") from error


def _check_images(path: Path, images: np.ndarray) -> None:
    where, expected = f"{path}: {IMAGES}", "uint8 [N, H, W, 3] in 0..255"
    found = f"{images.dtype}{list(images.shape)}"
    if images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise InputError(where, found, expected)
    if images.dtype == np.uint8:
        return
    if np.issubdtype(images.dtype, np.floating):
        some = np.asarray(images[:1000], np.float64)
        bad = int(np.count_nonzero(~np.isfinite(some)))
        if bad:
            found += f" with {bad} values that are NaN or infinite"
        else:
            found += f" from {some.min():g} to {some.max():g}, a range that may mean anything"
    raise InputError(where, found, expected)


def _check_labels(path: Path, labels: np.ndarray, count: int, num_classes: int) -> None:
    integers = np.issubdtype(labels.dtype, np.integer)
    if labels.shape == (count,) and integers and 0 <= labels.min() <= labels.max() < num_classes:
        return
    found = f"{labels.dtype}{list(labels.shape)}"
    if labels.size and integers:
        found += f" from {labels.min()} to {labels.max()}"
    expected = f"a class from 0 to {num_classes - 1} for each of {count} images"
    raise InputError(f"{path}: {LABELS}", found, expected)


# --- folder --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageFiles:
    """Image files of a folder, at any depth."""

    root: str
    files: Sequence[str] = field(repr=False)
    labels: np.ndarray = field(repr=False)
    num_classes: int
    unlabelled: str
    settings: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.root

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, which all images must share.

        Raises:
          InputError: naming two images of different sizes, or one that cannot be read.
        """
        with ThreadPoolExecutor() as pool:  # reads the headers alone
            sizes = list(pool.map(_size, (os.path.join(self.root, name) for name in self.files)))
        for name, size in zip(self.files, sizes, strict=True):
            if size != sizes[0]:
                found = f"{name} of {_px(size)} beside {self.files[0]} of {_px(sizes[0])}"
                raise InputError(self.root, found, "images of one size, to be measured as they are")
        return sizes[0]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        name = os.path.join(self.root, self.files[index])
        return {"image": decode(name, name), "label": int(self.labels[index]), "name": name}


def open_folder(
    path: str | os.PathLike, num_classes: int, class_names: Sequence[str] = ()
) -> ImageFiles:
    """The images of a folder, sorted by name.

    They have labels if their folders are named like classes: nothing else, such as the number of
    folders, says which is which.

    Args:
      class_names: of the data set, in the order of its labels; (): they are not known.

    Raises:
      InputError: there is no such folder, or no image in it.
    """
    root = os.fspath(path)
    if not os.path.isdir(root):
        raise InputError(path, "no such file or folder", "an .npz or a folder of images")
    files = image_files(root)
    if not files:
        raise InputError(path, "no image", READABLE)
    tops = [name.split(os.sep)[0] if os.sep in name else "" for name in files]
    unlabelled = _why_unlabelled(tops, class_names)
    number = {name: label for label, name in enumerate(class_names)}
    labels = np.array([0 if unlabelled else number[top] for top in tops])
    return ImageFiles(root, files, labels, num_classes, unlabelled)


def _why_unlabelled(tops: Sequence[str], class_names: Sequence[str]) -> str:
    """Why the folders that images lie in ("": in none) are no classes; "" if they are."""
    if not any(tops):
        return NO_LABELS
    if not class_names:
        return f"{NO_LABELS}: it is not known what the classes are called"
    for top in sorted(set(tops) - set(class_names), key=by_number):
        lie = f"lie in {top!r}, which is no class" if top else "lie beside the class folders"
        return f"{NO_LABELS}: some {lie}, as {class_names[0]!r} is"
    return ""


def _size(path: str) -> tuple[int, int]:
    """Height and width of an image, of which the header alone is read."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception as error:  # Pillow's parsers raise nearly anything on damaged bytes
        raise InputError(path, f"an unreadable image ({error})", "one that Pillow reads") from error


def _px(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]} px"


def is_npz(path: str | os.PathLike) -> bool:
    """Whether a set is a file, not a folder.

    Raises:
      InputError: it is a file of another suffix.
    """
    path = Path(path)
    if path.suffix.lower() == ".npz":
        return True
    if path.is_file():
        expected = "an .npz with the images as arr_0, or a folder of images"
        raise InputError(path, f"a file of suffix {path.suffix!r}", expected)
    return False


def open_set(
    path: str | os.PathLike, num_classes: int, class_names: Sequence[str] = ()
) -> ImageArray | ImageFiles:
    """Opens an .npz or a folder of images; see `open_npz` and `open_folder`."""
    if is_npz(path):
        return open_npz(path, num_classes)
    return open_folder(path, num_classes, class_names)


# --- any source ----------------------------------------------------------------------------------


def fingerprint(source: Sequence, limit: int = 256) -> str:
    """A name for a set of images by its content: 16 hexadecimal digits.

    Made of the number of images and of labels and pixels of up to `limit` of them, spread over all
    (a training set takes too long to be read for this alone): names and places do not matter, and
    a change of a few images may go unnoticed.
    """
    count = len(source)
    digest = hashlib.sha256(str(count).encode())
    for index in np.unique(np.linspace(0, count - 1, min(limit, count)).astype(int)):
        try:
            example = source[int(index)]
        except DamagedImage:
            digest.update(b"damaged")
            continue
        digest.update(f"{example['label']} {example['image'].size}".encode())
        digest.update(example["image"].tobytes())
    return digest.hexdigest()[:16]
