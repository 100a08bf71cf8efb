"""Tests of bar_jax/data/image_sets.py: images in an .npz or a folder, measured as they are."""

import json

import numpy as np
import pytest
from PIL import Image

from bar_jax.data import image_sets
from bar_jax.runtime.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
LABELS = np.array([0, 1, 2, 1, 0])


def pixels(source):
    return np.stack([np.asarray(source[i]["image"]) for i in range(len(source))])


# --- .npz ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_labels_and_settings_of_an_npz(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, arr_0=IMAGES, arr_1=LABELS, settings=json.dumps({"sample_seed": 3}))
    source = image_sets.open_npz(path, num_classes=3)
    np.testing.assert_array_equal(pixels(source), IMAGES)
    assert [source[i]["label"] for i in range(5)] == LABELS.tolist()
    assert (not source.unlabelled, source.size, len(source)) == (True, (8, 8), 5)
    assert source.settings == {"sample_seed": 3}


def test_uncompressed_images_are_mapped_and_not_read(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=IMAGES, other=np.ones(3))
    images = image_sets.open_npz(tmp_path / "a.npz", 3).images
    assert isinstance(images, np.memmap)


def test_arrays_in_fortran_order_are_read_as_they_are(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=np.asfortranarray(IMAGES))
    np.testing.assert_array_equal(pixels(image_sets.open_npz(tmp_path / "a.npz", 3)), IMAGES)


def test_images_alone_have_no_labels(tmp_path):
    """As the ADM evaluator's samples may be."""
    np.savez(tmp_path / "a.npz", IMAGES)
    source = image_sets.open_npz(tmp_path / "a.npz", 3)
    assert (source.unlabelled, source.settings) == ("the samples have no labels", {})


FLOATS = IMAGES.astype(np.float32) / 255
NAN = np.where(np.arange(8) == 3, np.nan, FLOATS.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(arr_0=FLOATS), r"a.npz: arr_0: found float32\[5, 8, 8, 3\] from 0 to 1, a range"),
        (dict(arr_0=NAN), "with 120 values that are NaN or infinite, expected uint8"),
        (dict(arr_0=IMAGES[..., :1]), r"found uint8\[5, 8, 8, 1\], expected uint8 \[N, H, W, 3\]"),
        (dict(arr_0=IMAGES[:0]), r"found uint8\[0, 8, 8, 3\]"),
        (dict(images=IMAGES), "found images, expected arr_0"),
        (dict(arr_0=IMAGES, arr_1=LABELS[:3]), r"arr_1: found int64\[3\] from 0 to 2, expected a"),
        (dict(arr_0=IMAGES, arr_1=LABELS + 1), "from 1 to 3, expected a class from 0 to 2 for"),
        (dict(arr_0=IMAGES, arr_1=LABELS / 2), r"arr_1: found float64\[5\], expected"),
        (dict(arr_0=IMAGES, settings="{"), "settings: found .*, expected JSON"),
    ],
)
def test_what_is_no_set_of_images_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=message):
        image_sets.open_npz(tmp_path / "a.npz", num_classes=3)


def test_objects_are_not_unpickled(tmp_path):
    mixed = np.empty(2, object)
    mixed[:] = [IMAGES[0], IMAGES[1, :4]]
    np.savez(tmp_path / "a.npz", arr_0=mixed)
    with pytest.raises(InputError, match="arr_0: found an unreadable array"):
        image_sets.open_npz(tmp_path / "a.npz", 3)


def test_a_file_that_is_cut_off_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=IMAGES)
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-100])
    with pytest.raises(InputError, match=r"a\.npz: found an unreadable file"):
        image_sets.open_npz(tmp_path / "a.npz", 3)
    with pytest.raises(InputError, match=r"b\.npz: found no such file"):
        image_sets.open_npz(tmp_path / "b.npz", 3)


# --- folder --------------------------------------------------------------------------------------


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


NAMES = ("zero", "one", "two")  # in the order of labels, not of text


def test_sub_folders_are_classes_where_they_are_called_like_them(tmp_path):
    for i, label in enumerate(LABELS):
        save(tmp_path / f"{NAMES[label]}/{i}.png", IMAGES[i])
    source = image_sets.open_set(tmp_path, 3, NAMES)
    assert not source.unlabelled
    assert [source[i]["label"] for i in range(5)] == [1, 1, 2, 0, 0]
    np.testing.assert_array_equal(pixels(source), IMAGES[[1, 3, 2, 0, 4]])


@pytest.mark.parametrize(
    ("folders", "names", "reason"),
    [
        (("0", "1", "2"), NAMES, ": some lie in '0', which is no class, as 'zero' is"),
        (("zero", "one", "three"), NAMES, ": some lie in 'three', which is no class, as 'zero' is"),
        (("zero", ""), NAMES, ": some lie beside the class folders, as 'zero' is"),
        (NAMES, (), ": it is not known what the classes are called"),
        (("",), NAMES, ""),
    ],
)
def test_as_many_sub_folders_as_classes_are_not_taken_for_them(tmp_path, folders, names, reason):
    for i, name in enumerate(folders):
        save(tmp_path / name / f"{i}.png", IMAGES[i])
    source = image_sets.open_set(tmp_path, 3, names)
    assert source.unlabelled == f"the samples have no labels{reason}"
    assert not source.labels.any()


def test_a_flat_folder_has_no_labels(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", IMAGES[i])
    (tmp_path / "readme.txt").write_text("not an image")
    source = image_sets.open_set(tmp_path, num_classes=1)
    assert (not source.unlabelled, len(source), source.size) == (False, 3, (8, 8))


def test_mixed_sizes_are_named(tmp_path):
    save(tmp_path / "a.png", IMAGES[0])
    save(tmp_path / "b.png", IMAGES[1, :4])
    with pytest.raises(InputError, match=r"found b.png of 8 x 4 px beside a.png of 8 x 8 px"):
        _ = image_sets.open_set(tmp_path, 1).size


def test_the_suffix_of_an_npz_may_be_in_capitals(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=IMAGES)
    (tmp_path / "a.npz").rename(tmp_path / "A.NPZ")
    assert len(image_sets.open_set(tmp_path / "A.NPZ", 3)) == 5


def test_another_file_is_not_said_to_be_missing(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    with pytest.raises(InputError, match="a.npy: found a file of suffix '.npy', expected an .npz"):
        image_sets.open_set(tmp_path / "a.npy", 3)


def test_a_damaged_header_and_an_empty_folder_are_named(tmp_path):
    with pytest.raises(InputError, match="found no image"):
        image_sets.open_set(tmp_path, 1)
    with pytest.raises(InputError, match="nowhere: found no such file or folder"):
        image_sets.open_set(tmp_path / "nowhere", 1)
    (tmp_path / "a.png").write_bytes(b"none")
    with pytest.raises(InputError, match=r"a\.png: found an unreadable image"):
        _ = image_sets.open_set(tmp_path, 1).size


# --- fingerprint ---------------------------------------------------------------------------------


def test_the_fingerprint_is_of_the_images_and_not_of_their_place(tmp_path):
    for i in range(5):
        save(tmp_path / f"{i}.png", IMAGES[i])
    np.savez(tmp_path / "a.npz", arr_0=IMAGES)
    own = image_sets.fingerprint(image_sets.open_folder(tmp_path, 1))
    assert own == image_sets.fingerprint(image_sets.open_npz(tmp_path / "a.npz", 1))
    other = IMAGES.copy()
    other[2, 0, 0, 0] ^= 1
    np.savez(tmp_path / "b.npz", arr_0=other)
    assert own != image_sets.fingerprint(image_sets.open_npz(tmp_path / "b.npz", 1))
