"""Tests of bar_jax/data/captions.py and tars.py: which captions belong to which image."""

import io
import json
import logging
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from bar_jax.data import tars
from bar_jax.data.captions import open_captioned
from bar_jax.data.images import DamagedImage
from bar_jax.runtime.errors import InputError

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def png(color):
    file = io.BytesIO()
    Image.new("RGB", (3, 2), color).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """red.png, green.png, in/blue.png."""
    (tmp_path / "in").mkdir()
    for name, file in (("red", "red.png"), ("green", "green.png"), ("blue", "in/blue.png")):
        (tmp_path / file).write_bytes(png(COLORS[name]))
    return tmp_path


def lines(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))


def read(source):
    """(color, captions) of all examples."""
    names = {color: name for name, color in COLORS.items()}
    pixel = lambda image: tuple(int(x) for x in np.asarray(image)[0, 0])
    return [(names[pixel(e["image"])], e["captions"]) for e in source]


EXPECTED = [("red", ("a red one",)), ("blue", ("blue", "sky"))]


def test_lines_of_json(folder):
    lines(
        folder / "captions.jsonl",
        {"file": "red.png", "caption": "a red one", "tags": ["x"]},
        {"file": "in/blue.png", "caption": "blue"},
        {"file": "in/blue.png", "caption": " sky "},
    )
    assert read(open_captioned(str(folder))) == EXPECTED


def test_lines_of_json_as_hugging_face_names_them(folder):
    lines(
        folder / "metadata.jsonl",
        {"file_name": "red.png", "text": "a red one"},
        {"file_name": "in/blue.png", "text": ["blue", "sky"]},
    )
    assert read(open_captioned(str(folder))) == EXPECTED


def test_csv(folder):
    rows = 'file,caption\nred.png,a red one\n./in/blue.png,blue\n./in/blue.png,"sky"\n'
    (folder / "captions.csv").write_text("\ufeff" + rows, encoding="utf-8")
    assert read(open_captioned(str(folder))) == EXPECTED


def test_texts_beside_images(folder):
    (folder / "red.txt").write_text("a red one\n")
    (folder / "green.txt").write_text("green")
    (folder / "in/blue.txt").write_text("blue\n\nsky\n")
    found = read(open_captioned(str(folder)))
    assert found == [("green", ("green",)), EXPECTED[1], EXPECTED[0]]


def test_journeydb(folder):
    stored = [["red.png", "a red one", 1, "x"], ["in/blue.png", "blue"], ["in/blue.png", "sky"]]
    (folder / "anno.json").write_text(json.dumps(stored))
    assert read(open_captioned(str(folder), "anno.json")) == EXPECTED


def test_coco(folder):
    images = [{"id": 7, "file_name": "red.png"}, {"id": 3, "file_name": "in/blue.png"}]
    texts = [(3, "blue"), (7, "a red one"), (3, "sky")]
    annotations = [{"image_id": i, "caption": text} for i, text in texts]
    path = folder.parent / "captions_val2014.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    assert read(open_captioned(str(folder), str(path))) == EXPECTED


def test_images_in_a_sub_folder_of_that_name(tmp_path, folder):
    root = tmp_path / "root"
    (root / "images").mkdir(parents=True)
    (root / "images/red.png").write_bytes(png(COLORS["red"]))
    lines(root / "captions.jsonl", {"file": "red.png", "caption": "a red one"})
    assert read(open_captioned(str(root))) == EXPECTED[:1]


def test_a_source_can_be_pickled(folder):
    lines(folder / "captions.jsonl", {"file": "red.png", "caption": "a red one"})
    assert read(pickle.loads(pickle.dumps(open_captioned(str(folder))))) == EXPECTED[:1]


def test_empty_captions_are_named_and_left_out(folder, caplog):
    lines(
        folder / "captions.jsonl",
        {"file": "red.png", "caption": "a red one"},
        {"file": "green.png", "caption": " "},
        {"file": "in/blue.png", "captions": ["blue", "", "sky"]},
    )
    with caplog.at_level(logging.WARNING):
        assert read(open_captioned(str(folder))) == EXPECTED
    assert "green.png: 1 of 1 captions empty" in caplog.text
    assert "blue.png: 1 of 3 captions empty" in caplog.text
    with pytest.raises(InputError, match="green.png: found 1 of 1 captions empty"):
        open_captioned(str(folder), on_damaged="refuse")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("captions.jsonl", '{"file": "red.png"}', "captions.jsonl:1: found the keys file"),
        ("captions.jsonl", '{"file": "red.png", "caption": "x"}\n{', "captions.jsonl:2: found no"),
        ("captions.jsonl", '{"file": "no.png", "caption": "x"}', "1 of 1 missing: no.png"),
        ("captions.jsonl", "", "captions.jsonl: found no captions"),
        ("captions.csv", "a,b\n1,2\n", "captions.csv:2: found the keys a, b"),
        ("red.txt", "x", "data.path: found 2 of 3 missing: green.png, in/blue.png"),
        ("other.txt.gz", "", "no captions in"),
    ],
)
def test_what_cannot_be_read_is_named(folder, file, text, message):
    (folder / file).write_text(text)
    with pytest.raises(InputError) as error:
        open_captioned(str(folder))
    assert message in str(error.value)


def test_two_files_of_captions_are_refused_unless_one_is_named(folder):
    lines(folder / "captions.jsonl", {"file": "red.png", "caption": "a red one"})
    (folder / "captions.csv").write_text("file,caption\nred.png,other\n")
    with pytest.raises(InputError, match="captions.jsonl and captions.csv in"):
        open_captioned(str(folder))
    assert read(open_captioned(str(folder), "captions.csv")) == [("red", ("other",))]


@pytest.mark.parametrize(
    ("captions", "text", "message"),
    [
        ("no.json", None, "data.captions: found no file"),
        ("a.xml", "", "the suffix '.xml'"),
        ("a.json", "{", "no JSON"),
        ("a.json", '{"images": []}', "other entries (KeyError('annotations'))"),
        ("a.json", "[1]", "other entries"),
    ],
)
def test_a_given_file_that_cannot_be_read_is_named(folder, captions, text, message):
    if text is not None:
        (folder / captions).write_text(text)
    with pytest.raises(InputError) as error:
        open_captioned(str(folder), captions)
    assert message in str(error.value)


# --- tar shards ----------------------------------------------------------------------------------


def write_tar(path, **members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name.replace("__", "/").replace("_", "."))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path):
    write_tar(tmp_path / "0.tar", a_txt=b"a red one\n", a_png=png(COLORS["red"]))
    blue = json.dumps({"captions": ["blue", "sky"]}).encode()
    write_tar(tmp_path / "1.tar", in__a_png=png(COLORS["blue"]), in__a_json=blue, a_cls=b"3")
    return tmp_path


def test_tar_shards(shards):
    source = open_captioned(str(shards))
    assert read(source) == EXPECTED
    assert source[1]["name"] == f"{shards}/1.tar/in/a.png"


def test_shards_are_listed_once_until_they_change(shards, monkeypatch):
    listed = []
    own = tars._list
    monkeypatch.setattr(tars, "_list", lambda path: listed.append(path[-5:]) or own(path))
    open_captioned(str(shards))
    open_captioned(str(shards))
    assert listed == ["0.tar", "1.tar"]
    write_tar(shards / "1.tar", b_png=png(COLORS["green"]), b_txt=b"green")
    assert read(open_captioned(str(shards))) == [EXPECTED[0], ("green", ("green",))]
    assert listed == ["0.tar", "1.tar", "1.tar"]


def test_without_a_place_for_the_index_it_is_made_again(shards, caplog):
    (shards / ".bar_jax").write_text("a file")
    with caplog.at_level(logging.WARNING):
        assert read(open_captioned(str(shards))) == EXPECTED
    assert "its index is not kept" in caplog.text


def test_an_image_without_a_caption_is_named(shards, caplog):
    write_tar(shards / "2.tar", c_png=png(COLORS["green"]))
    with caplog.at_level(logging.WARNING):
        assert read(open_captioned(str(shards))) == EXPECTED
    assert "2.tar/c.png: 0 of 0 captions empty" in caplog.text


def test_a_damaged_shard_is_named(shards):
    whole = (shards / "1.tar").read_bytes()
    (shards / "1.tar").write_bytes(whole[:600])
    with pytest.raises(InputError, match="1.tar: found a damaged tar file"):
        open_captioned(str(shards))


def test_a_damaged_image_in_a_shard_is_named_when_it_is_read(shards):
    write_tar(shards / "2.tar", c_png=b"no image", c_txt=b"text")
    source = open_captioned(str(shards))
    with pytest.raises(DamagedImage, match="2.tar/c.png"):
        source[2]
