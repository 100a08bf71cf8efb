"""Where images come from: scikit-learn's digits, image folders, TensorFlow Datasets.

A source is a random-access sequence of examples that can be pickled: `len(source)` and
`source[i] -> {"image": RGB PIL image, "label": int, "name": str}`, decoded when accessed. A damaged
image raises `DamagedImage` there and nowhere else. `source.class_names` has a name per class and
`source.num_classes` is their number. A new source is one class with these and one line in
`open_source`.
"""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from bar_jax.data.folders import (
    check_same_classes,
    class_folders,
    images_of_classes,
    split_root,
)
from bar_jax.data.images import decode
from bar_jax.runtime.errors import InputError

HOLDOUT_EVERY = 20  # without a validation split, one image in this many validates


def open_source(
    kind: str,
    *,
    path: str = "",
    name: str = "",
    train_split: str = "",
    validation_split: str = "",
    validation: bool = False,
):
    """Opens the training or the validation images that the fields of `config.data` name.

    Args:
      kind: `digits`, `folder` or `tfds` (`data.source`).
      path: folder: its root; tfds: the folder of prepared data sets; digits: ignored.
      name: tfds: the data set, such as `imagenet2012`.
      train_split: folder: sub-directory of `path`, or "" for `path` itself; tfds: a split.
      validation_split: folder: sub-directory of `path` with the same classes, or "" to hold out
        every 20th training image; tfds: a split.
      validation: which of the two to open.

    Returns:
      a source.

    Raises:
      InputError: unknown kind, missing or empty folder, data set not prepared, classes differ.
    """
    if kind == "digits":
        return digits("validation" if validation else "train")
    if kind == "folder":
        if not validation_split:
            return holdout(folder(path, train_split), validation=validation)
        if not validation:
            return folder(path, train_split)
        source = folder(path, validation_split)
        check_same_classes(source.class_names, class_folders(split_root(path, train_split)))
        return source
    if kind == "tfds":
        where = "data.validation_split" if validation else "data.train_split"
        split = validation_split if validation else train_split
        return tfds(name, path, split, where=where)
    raise InputError("data.source", repr(kind), "digits, folder or tfds")


def check_labels(source, num_classes: int) -> None:
    """Refuses a source whose number of classes is not the model's (`data.num_classes`)."""
    if source.num_classes != num_classes:
        raise InputError("data.num_classes", str(num_classes), f"{source.num_classes}, as the data")


# --- views ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subset:
    """The examples of `source` at `indices`, in that order."""

    source: Sequence
    indices: np.ndarray

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict:
        return self.source[int(self.indices[index])]


def spread(source: Sequence, limit: int | None) -> Subset:
    """At most `limit` examples, evenly spread: folders come class by class. None takes all."""
    count = min(limit or len(source), len(source))
    return Subset(source, np.arange(count) * len(source) // count)


def holdout(source, *, every: int = HOLDOUT_EVERY, validation: bool) -> Subset:
    """Splits a source by index: the last of each `every` images validates, the others train.

    Sources are sorted by class, so every class with at least `every` images is in both parts.

    Raises:
      InputError: there are fewer than `every` images, so that none would validate.
    """
    if len(source) < every:
        raise InputError(
            "data.path",
            f"{len(source)} images and no validation split",
            f"at least {every}, of which one is held out, or a data.validation_split",
        )
    held_out = np.arange(len(source)) % every == every - 1
    return Subset(source, np.flatnonzero(held_out if validation else ~held_out))


# --- digits --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 8x8 grey digits, as shipped inside the package."""

    images: tuple[Image.Image, ...] = field(repr=False)
    labels: np.ndarray = field(repr=False)
    class_names: tuple[str, ...] = tuple("0123456789")
    num_classes: int = 10

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        label = int(self.labels[index])
        return {"image": self.images[index], "label": label, "name": f"digits[{index}]"}


def digits(split: str) -> Subset:
    """The 1797 digits of scikit-learn: 8x8 pixels, 10 classes, nothing to download.

    Values 0..16 become `round(v * 255 / 16)`. Within each class, in the order of the package, the
    10th, 20th, ... image validates and the others train.

    Args:
      split: `train` (1621 images) or `validation` (176).
    """
    from sklearn.datasets import load_digits  # a second to import, for this source alone

    if split not in ("train", "validation"):
        raise InputError("the split of digits", repr(split), "train or validation")
    data = load_digits()
    labels = data.target
    rank = np.empty_like(labels)  # of each image within its class
    for label in range(10):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    chosen = (rank % 10 == 9) == (split == "validation")
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8)
    images = tuple(Image.fromarray(grey).convert("RGB") for grey in pixels)
    return Subset(Digits(images, labels), np.flatnonzero(chosen))


# --- image folder --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folder:
    """One sub-directory per class. `files[i]` is relative to `root`."""

    root: str
    files: list[str] = field(repr=False)
    labels: np.ndarray = field(repr=False)
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        name = os.path.join(self.root, self.files[index])
        return {"image": decode(name, name), "label": int(self.labels[index]), "name": name}


def folder(path: str, split: str = "") -> Folder:
    """Images in one sub-directory per class: classes in order, then sorted files at any depth.

    Args:
      path: the root.
      split: a sub-directory of it that holds the class directories, or "" for the root itself.

    Raises:
      InputError: no such directory, no class directories in it, or one without images.
    """
    root = split_root(path, split)
    class_names = class_folders(root)
    files = images_of_classes(root, class_names)
    labels = np.repeat(np.arange(len(files), dtype=np.int32), [len(own) for own in files])
    return Folder(root, [name for own in files for name in own], labels, class_names)


# --- TensorFlow Datasets -------------------------------------------------------------------------


@dataclass(frozen=True)
class Tfds:
    """A data set prepared by tfds, read as undecoded bytes so that a damaged image has a name."""

    records: Sequence
    prefix: str
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        record = self.records[index]
        name = f"{self.prefix}[{index}]"
        image = decode(io.BytesIO(record["image"]), name)
        return {"image": image, "label": int(record["label"]), "name": name}


def tfds(name: str, data_dir: str, split: str, *, where: str = "data.train_split") -> Tfds:
    """A data set of `tensorflow_datasets` with the features `image` and `label`.

    TensorFlow is not needed: the data set must be prepared as array_record.

    Args:
      name: such as `imagenet2012` or `imagenet2012:5.1.0`.
      data_dir: where it was prepared; "" for the default of tfds (`~/tensorflow_datasets`).
      split: such as `train`, `validation` or `train[95%:]`.
      where: the config field that `split` came from.

    Raises:
      InputError: tfds is not installed, the data set is unknown or not prepared, no such split or
        no image and label in it.
    """
    try:
        import tensorflow_datasets  # an extra, and slow to import
    except ImportError as error:
        raise InputError(
            "data.source", "tfds, which is not installed", 'pip install "bar_jax[tfds]"'
        ) from error
    data_dir = data_dir or None
    try:
        builder = tensorflow_datasets.builder(
            name, data_dir=data_dir, try_gcs=False, file_format="array_record"
        )
    except Exception as error:  # unknown name, other version, prepared as tfrecord, ...
        reason = str(error).strip().splitlines()[0]
        expected = "a data set of tfds, prepared as array_record"
        raise InputError("data.name", f"{name!r} ({reason})", expected) from error
    if not builder.is_prepared():
        raise InputError(
            "data.name",
            f"{name} is not prepared as array_record in {builder.data_path}",
            f"tfds.builder({name!r}, data_dir={data_dir!r}, file_format='array_record')"
            ".download_and_prepare() to have run once",
        )
    # What lies there is enough from here on; worker processes may not know the builder's class.
    builder = tensorflow_datasets.builder_from_directory(builder.data_path)
    features = dict(builder.info.features)
    if "image" not in features or not hasattr(features.get("label"), "names"):
        found = f"{name} with the features {', '.join(features)}"
        raise InputError("data.name", found, "an image and a class label")
    try:
        records = builder.as_data_source(
            split, decoders={"image": tensorflow_datasets.decode.SkipDecoding()}
        )
    except Exception as error:  # tfds has many kinds of errors for a split
        splits = ", ".join(builder.info.splits)
        reason = str(error).strip().splitlines()[0]
        raise InputError(where, f"{split!r} ({reason})", f"a split of {splits}") from error
    return Tfds(records, f"{name}/{split}", tuple(features["label"].names))
