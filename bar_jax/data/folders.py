"""What lies in a folder of images: image files, and class folders in the order of their labels.

Each real folder is read once, however many links lead to it. Hidden files and folders, and what
operating systems leave behind, are ignored.
"""

import collections
import functools
import logging
import os
import re
from collections.abc import Iterable, Sequence

from PIL import Image, ImageFile

from bar_jax.runtime.errors import InputError

logger = logging.getLogger(__name__)

# Folders of archives, NAS servers, file systems and Windows, which hold none of a user's images.
JUNK = (
    *("__MACOSX", "@eaDir", "#recycle", "lost+found"),
    *("$RECYCLE.BIN", "System Volume Information"),
)
SPLIT_NAMES = ("train", "val", "valid", "validation", "test")
NAMED = 5  # names in a message, at most
READABLE = "files that Pillow can read, such as .jpg or .png"


def by_number(name: str) -> tuple[list[str | int], str]:
    """What class names are sorted by: as text, but numbers in them by their value, 2 before 10."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Suffixes (`.jpg`) of the formats whose pixels Pillow can read.

    Pillow's own list also has formats that it can only write (PDF), or only recognise: those of
    stubs (HDF5), which others may make readable, and MPEG.
    """
    suffixes = Image.registered_extensions()  # fills Image.OPEN
    readable = {"MPO"}  # is opened as JPEG
    for kind, (factory, _) in Image.OPEN.items():
        stub = isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
        if not stub and kind != "MPEG":
            readable.add(kind)
    return frozenset(suffix for suffix, kind in suffixes.items() if kind in readable)


def image_files(root: str) -> list[str]:
    """Paths, relative to a folder and sorted, of the images in it at any depth, by their suffixes.

    A warning names other files, and links to folders that are read anyway.
    """
    files = list_files(root)
    _warn_of_ignored(root, files)
    return sorted(filter(_is_image, files))


def list_files(root: str) -> list[str]:
    """Paths, relative to a folder, of all files in it at any depth; links are followed."""
    found, seen = [], set()
    # Links wait: what is there under its own name is found under it.
    waiting, links = [""], collections.deque()
    while waiting or links:
        inner = waiting.pop() if waiting else links.popleft()
        key = _identity(os.path.join(root, inner))
        if key in seen:
            _tell_link(os.path.join(root, inner))
            continue
        seen.add(key)
        for entry in _entries(os.path.join(root, inner)):
            name = os.path.join(inner, entry.name)
            if not entry.is_dir():
                found.append(name)
            else:
                (links if entry.is_symlink() else waiting).append(name)
    return found


def images_of_classes(root: str, class_names: Sequence[str]) -> list[list[str]]:
    """The image files of each class folder, sorted; their paths are relative to `root`.

    Raises:
      InputError: a class folder without images; it names the class, and what is there instead.
    """
    files = collections.defaultdict(list)
    for name in list_files(root):
        files[name.split(os.sep)[0] if os.sep in name else ""].append(name)
    outside = sum(map(_is_image, files[""]))
    if outside:
        logger.warning("%s: %d images outside of class folders, ignored", root, outside)
    images = [sorted(filter(_is_image, files[name])) for name in class_names]
    others = [file for name in class_names for file in files[name]]
    if not any(images):
        found = f"no images in the {len(class_names)} class folders of {root}{_but(others)}"
        raise InputError("data.path", found, READABLE)
    for name, own in zip(class_names, images, strict=True):
        if not own:
            found = f"no images of class {name!r}{_but(files[name])}"
            raise InputError(os.path.join(root, name), found, READABLE)
    _warn_of_ignored(root, others)
    return images


def class_folders(root: str) -> tuple[str, ...]:
    """The names of the class folders, in the order of their labels (`by_number`).

    Raises:
      InputError: there are none, or they are splits that hold the class folders themselves.
    """
    folders = [entry for entry in _entries(root) if entry.is_dir()]
    names, seen = [], {_identity(root)}
    for entry in sorted(folders, key=os.DirEntry.is_symlink):  # a folder's own name comes first
        key = _identity(entry.path)
        if key in seen:
            _tell_link(entry.path)
        else:
            names.append(entry.name)
        seen.add(key)
    if not names:
        raise InputError("data.path", f"no class folders in {root}", "one sub-directory per class")
    _refuse_splits(root, names)
    return tuple(sorted(names, key=by_number))


def split_root(path: str, split: str) -> str:
    """The directory of a split's class folders; InputError if there is none."""
    root = os.path.join(path, split) if split else path
    if not os.path.isdir(root):
        raise InputError(
            "data.path", f"no directory {root!r}", "a directory with one sub-directory per class"
        )
    return root


def check_same_classes(validation: Sequence[str], training: Sequence[str]) -> None:
    """Refuses a validation split whose class folders are not those of the training split."""
    if validation != training:
        differing = sorted(set(validation) ^ set(training), key=by_number)
        raise InputError(
            "data.validation_split",
            f"class folders that differ from the training ones: {', '.join(differing[:NAMED])}",
            "the same sub-directories in both, or labels would not mean the same",
        )


def _refuse_splits(root: str, names: Sequence[str]) -> None:
    """Refuses class folders that are called like splits and hold folders, as splits do."""
    splits = [name for name in names if name.lower() in SPLIT_NAMES and _holds_folders(root, name)]
    if splits:
        fields = {
            f"data.{'train' if name.lower() == 'train' else 'validation'}_split": name
            for name in sorted(splits)
        }
        found = f"{' and '.join(map(repr, splits))} as class folders of {root}, with folders inside"
        meant = " and ".join(f"{field}={fields[field]}" for field in sorted(fields))
        expected = f"{meant}, if these are splits; else another name"
        raise InputError(min(fields), found, expected)


def _holds_folders(root: str, name: str) -> bool:
    return any(entry.is_dir() for entry in _entries(os.path.join(root, name)))


def _entries(folder: str) -> list[os.DirEntry]:
    """What is in a folder, sorted by name; hidden entries and junk are left out."""
    try:
        with os.scandir(folder) as entries:
            seen = [e for e in entries if not e.name.startswith(".") and e.name not in JUNK]
    except OSError as error:
        found = f"a folder that cannot be read ({error.strerror})"
        raise InputError(folder, found, "one that can") from error
    return sorted(seen, key=lambda entry: entry.name)


def _identity(folder: str) -> tuple[int, int]:
    """The same for all paths to a folder."""
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _tell_link(path: str) -> None:
    to = os.path.realpath(path)
    logger.warning("%s: a link to %s, which is read anyway; ignored", path, to)


def _but(files: Sequence[str]) -> str:
    """What is there instead of images, for a message."""
    return f", but {_suffixes_in_words(files)}" if files else ""


def _suffixes_in_words(files: Iterable[str]) -> str:
    """The suffixes of files that are no images, counted: `3 .heic, 1 without a suffix`."""
    counts = collections.Counter(_suffix(name) for name in files if not _is_image(name))
    words = [f"{n} {suffix or 'without a suffix'}" for suffix, n in counts.most_common(NAMED)]
    return ", ".join(words + ["..."] * (len(counts) > NAMED))


def _warn_of_ignored(root: str, files: Iterable[str]) -> None:
    words = _suffixes_in_words(files)
    if words:
        logger.warning("%s: ignored, as no images: %s", root, words)


def _is_image(name: str) -> bool:
    return _suffix(name) in image_suffixes()


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
