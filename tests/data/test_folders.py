"""Tests of bar_jax/data/folders.py: what a folder of images is taken for."""

import logging

import pytest

from bar_jax.data import folder
from bar_jax.data.folders import class_folders, image_files, image_suffixes
from bar_jax.runtime.errors import InputError


def make_files(root, *names):
    """Empty files: listing does not open them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return str(root)


# --- classes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("0", "2", "10", "100"),
        ("class1", "class2", "class10"),
        ("a2b10", "a10b2"),
        ("01", "1", "2"),
        ("n01440764", "n01443537", "n02102040"),  # the order of ImageNet's labels
        ("1", "a", "b"),
    ],
)
def test_numbers_in_class_names_count_by_their_value(tmp_path, names):
    make_files(tmp_path, *(f"{name}/a.png" for name in reversed(names)))
    assert class_folders(str(tmp_path)) == names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train", "test"), "data.train_split: found 'test' and 'train' as class folders of .*"
         "expected data.train_split=train and data.validation_split=test, if these are splits"),
        (("Validation", "cat"), "data.validation_split: found 'Validation' as class folders"),
        (("train", "cat"), "data.train_split: found 'train' .* data.train_split=train, if"),
    ],
)  # fmt: skip
def test_splits_are_not_taken_for_classes(tmp_path, names, message):
    make_files(tmp_path, *(f"{name}/cat/a.png" for name in names))
    with pytest.raises(InputError, match=message):
        class_folders(str(tmp_path))


def test_a_class_of_trains_is_one(tmp_path):
    make_files(tmp_path, "train/a.png", "train/.thumbs/a.png", "bus/deep/a.png")
    assert class_folders(str(tmp_path)) == ("bus", "train")


JUNK = ("__MACOSX", "@eaDir", "lost+found", ".cache")


def test_junk_is_no_class_and_holds_no_images(tmp_path):
    make_files(tmp_path, *(f"{name}/a.png" for name in JUNK), *(f"cat/{j}/a.png" for j in JUNK))
    source = folder(make_files(tmp_path, "cat/a.png"))
    assert (source.class_names, source.files) == (("cat",), ["cat/a.png"])


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ((), "no images of class 'dog', expected"),
        (("1.heic", "2.HEIC", "deep/notes"), "no images of class 'dog', but 2 .heic, 1 without a"),
    ],
)
def test_a_class_without_images_is_named_with_what_is_there(tmp_path, files, found):
    (tmp_path / "dog").mkdir()
    root = make_files(tmp_path, "cat/a.png", *(f"dog/{name}" for name in files))
    with pytest.raises(InputError, match=f"{root}/dog: found {found}"):
        folder(root)


def test_what_is_left_out_is_told(tmp_path, caplog):
    root = make_files(tmp_path, "cat/a.png", "cat/b.heic", "cat/c.heic", "cat/d.txt", "e.png")
    with caplog.at_level(logging.WARNING):
        folder(root)
    assert caplog.messages == [
        f"{root}: 1 images outside of class folders, ignored",
        f"{root}: ignored, as no images: 2 .heic, 1 .txt",
    ]


# --- links ---------------------------------------------------------------------------------------


def test_a_link_to_the_folder_itself_adds_nothing(tmp_path, caplog):
    root = make_files(tmp_path, "cat/a.png", "dog/b.png")
    (tmp_path / "latest").symlink_to(".")
    (tmp_path / "cat/up").symlink_to("..")
    with caplog.at_level(logging.WARNING):
        source = folder(root)
    assert (source.class_names, source.files) == (("cat", "dog"), ["cat/a.png", "dog/b.png"])
    assert image_files(root) == ["cat/a.png", "dog/b.png"]
    assert f"{root}/latest: a link to {tmp_path.resolve()}, which is read anyway" in caplog.text


def test_a_folder_is_read_under_its_own_name(tmp_path):
    """Not under that of a link which comes before it."""
    root = make_files(tmp_path, "cat/a.png")
    (tmp_path / "all").symlink_to("cat")
    assert class_folders(root) == ("cat",)
    assert image_files(root) == ["cat/a.png"]


def test_links_to_other_places_are_followed_once(tmp_path):
    make_files(tmp_path, "elsewhere/a.png", "elsewhere/deep/b.png")
    (tmp_path / "photos/cat").mkdir(parents=True)
    for name in ("one", "two"):
        (tmp_path / "photos/cat" / name).symlink_to(tmp_path / "elsewhere")
    assert image_files(str(tmp_path / "photos")) == ["cat/one/a.png", "cat/one/deep/b.png"]


# --- formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pdf", ".mpg", ".h5", ".hdf", ".grib", ".palm", ".txt", ""])
def test_what_pillow_lists_but_cannot_read_is_no_image(suffix):
    assert suffix not in image_suffixes()


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".webp", ".tif", ".gif", ".mpo"])
def test_what_pillow_reads_is_an_image(suffix):
    assert suffix in image_suffixes()
