import builtins
import io
import pickle

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from bar_jax.data import check_labels, digits, folder, holdout, open_source
from bar_jax.data.images import DamagedImage
from bar_jax.data.sources import Subset
from bar_jax.runtime.errors import InputError


def make_folder(root, **classes):
    """Files by class: `make_folder(root, cat=["1.png"])`, each of another grey level."""
    level = 0
    for class_name, files in classes.items():
        (root / class_name).mkdir(parents=True)
        for file in files:
            path = root / class_name / file
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (4, 4), (level,) * 3).save(path)
            level += 1
    return str(root)


def names(source, root):
    return [source[i]["name"].removeprefix(f"{root}/") for i in range(len(source))]


# --- digits --------------------------------------------------------------------------------------


def test_digits_splits_share_nothing_and_are_all():
    train, validation = digits("train"), digits("validation")
    assert sorted([*train.indices, *validation.indices]) == list(range(1797))


def test_digits_validation_is_a_tenth_of_every_class():
    source = digits("validation")
    counts = np.bincount([source[i]["label"] for i in range(len(source))])
    np.testing.assert_array_equal(counts, np.bincount(load_digits().target) // 10)


def test_digits_pixels_are_scaled():
    source = digits("train")
    expected = load_digits().images[source.indices[3]] * 255 / 16
    np.testing.assert_allclose(np.asarray(source[3]["image"])[..., 2], expected, atol=0.5)


def test_digits_refuses_another_split():
    with pytest.raises(InputError, match="'test', expected train or validation"):
        digits("test")


# --- folder --------------------------------------------------------------------------------------


def test_folder_sorts_classes_and_files(tmp_path):
    root = make_folder(tmp_path, dog=["b.png", "a.png"], cat=["deep/c.png", "d.PNG"])
    source = folder(root)
    assert source.class_names == ("cat", "dog")
    assert names(source, root) == ["cat/d.PNG", "cat/deep/c.png", "dog/a.png", "dog/b.png"]
    assert [source[i]["label"] for i in range(4)] == [0, 0, 1, 1]


def test_folder_reads_the_file_of_the_name(tmp_path):
    source = folder(make_folder(tmp_path, dog=["b.png", "a.png"]))
    assert source[0]["image"].getpixel((0, 0)) == (1, 1, 1)  # a.png was written second


def test_folder_ignores_hidden_and_other_files(tmp_path):
    root = make_folder(tmp_path, cat=["a.png", ".b.png", ".thumbs/c.png"])
    (tmp_path / "cat" / "notes.txt").write_text("hello")
    (tmp_path / "LICENSE").write_text("hello")
    (tmp_path / ".cache").mkdir()
    assert names(folder(root), root) == ["cat/a.png"]
    assert folder(root).class_names == ("cat",)


def test_folder_names_a_damaged_file_when_it_is_read(tmp_path):
    root = make_folder(tmp_path, cat=["a.png", "b.png"])
    (tmp_path / "cat" / "a.png").write_bytes(b"no image")
    source = folder(root)
    with pytest.raises(DamagedImage, match="cat/a.png"):
        source[0]


def test_folder_can_be_pickled(tmp_path):
    source = folder(make_folder(tmp_path, cat=["a.png"]))
    assert pickle.loads(pickle.dumps(source))[0]["name"] == source[0]["name"]


def test_missing_folder(tmp_path):
    with pytest.raises(InputError, match="data.path: found no directory .*nowhere"):
        folder(str(tmp_path / "nowhere"))


def test_folder_without_classes(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="data.path: found no class folders"):
        folder(str(tmp_path))


def test_folder_without_images(tmp_path):
    with pytest.raises(InputError, match="data.path: found no images in the 2 class folders"):
        folder(make_folder(tmp_path, cat=[], dog=[]))


# --- validation ----------------------------------------------------------------------------------


def test_holdout_takes_the_last_of_each_twenty():
    source = Subset(digits("train"), np.arange(45))
    assert holdout(source, validation=True).indices.tolist() == [19, 39]


def test_holdout_trains_on_the_others():
    source = Subset(digits("train"), np.arange(45))
    assert set(range(45)) - set(holdout(source, validation=False).indices) == {19, 39}


def test_holdout_of_too_few():
    with pytest.raises(InputError, match="data.path: found 19 images and no validation split"):
        holdout(Subset(digits("train"), np.arange(19)), validation=False)


def test_open_source_validates_on_its_own_split(tmp_path):
    make_folder(tmp_path / "train", cat=["a.png"])
    make_folder(tmp_path / "val", cat=["b.png"])
    fields = dict(path=str(tmp_path), train_split="train", validation_split="val")
    train = open_source("folder", **fields)
    validation = open_source("folder", validation=True, **fields)
    assert names(train, tmp_path) + names(validation, tmp_path) == [
        "train/cat/a.png",
        "val/cat/b.png",
    ]


def test_open_source_holds_out_without_a_split(tmp_path):
    root = make_folder(tmp_path, cat=[f"{i:02}.png" for i in range(20)])
    assert names(open_source("folder", path=root, validation=True), root) == ["cat/19.png"]


def test_validation_classes_must_be_the_training_ones(tmp_path):
    make_folder(tmp_path / "train", cat=["a.png"], dog=["a.png"])
    make_folder(tmp_path / "val", cat=["b.png"])
    with pytest.raises(InputError, match="data.validation_split: .*training ones: dog"):
        open_source(
            "folder",
            path=str(tmp_path),
            train_split="train",
            validation_split="val",
            validation=True,
        )


def test_unknown_source():
    with pytest.raises(
        InputError, match="data.source: found 'zip', expected digits, folder or tfds"
    ):
        open_source("zip")


def test_number_of_classes_is_checked():
    with pytest.raises(InputError, match="data.num_classes: found 1000, expected 10"):
        check_labels(digits("train"), 1000)


# --- tfds ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A data set of six images, the fourth damaged, prepared without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class BarJaxTiny(tfds.core.GeneratorBasedBuilder):
        __module__ = "tiny"  # tfds looks for files next to the module, and chokes on tests/
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(6):
                file = io.BytesIO()  # arrays would be encoded by TensorFlow
                Image.new("RGB", (5, 4), (10 * i,) * 3).save(file, "PNG")
                file = io.BytesIO(b"no image" if i == 3 else file.getvalue())
                yield i, {"image": file, "label": i % 2}

    data_dir = str(tmp_path_factory.mktemp("tfds"))
    BarJaxTiny(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return data_dir


def read_all(source):
    """{grey level: label} of the images, and the names of the damaged ones."""
    labels, damaged = {}, []
    for i in range(len(source)):
        try:
            example = source[i]
            labels[example["image"].getpixel((0, 0))[0]] = example["label"]
        except DamagedImage as error:
            damaged.append(error.name)
    return labels, damaged


def test_tfds_reads_what_was_prepared(tiny):
    source = open_source("tfds", path=tiny, name="bar_jax_tiny", train_split="train")
    assert read_all(source)[0] == {0: 0, 10: 1, 20: 0, 40: 0, 50: 1}
    assert source.class_names == ("cat", "dog")


def test_tfds_names_a_damaged_image(tiny):
    source = open_source("tfds", path=tiny, name="bar_jax_tiny", train_split="train")
    (damaged,) = read_all(pickle.loads(pickle.dumps(source)))[1]
    assert damaged.startswith("bar_jax_tiny/train[")


def test_tfds_takes_parts_of_splits(tiny):
    fields = dict(path=tiny, name="bar_jax_tiny", validation_split="train[50%:]", validation=True)
    assert len(open_source("tfds", **fields)) == 3


def test_tfds_without_that_split(tiny):
    with pytest.raises(InputError, match="data.validation_split: found 'test'.* a split of train"):
        open_source(
            "tfds", path=tiny, name="bar_jax_tiny", validation_split="test", validation=True
        )


def test_tfds_not_prepared(tiny, tmp_path):
    with pytest.raises(InputError, match="data.name: .*not prepared.*download_and_prepare"):
        open_source("tfds", path=str(tmp_path), name="bar_jax_tiny", train_split="train")


def test_tfds_of_an_unknown_name(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(InputError, match="data.name: found 'no_such_set'"):
        open_source("tfds", path=str(tmp_path), name="no_such_set", train_split="train")


def test_tfds_not_installed(monkeypatch):
    installed = builtins.__import__

    def without_tfds(name, *args, **kwargs):
        if name == "tensorflow_datasets":
            raise ImportError(name)
        return installed(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_tfds)
    with pytest.raises(InputError, match=r'data.source: .*pip install "bar_jax\[tfds\]"'):
        open_source("tfds", name="mnist", train_split="train")
