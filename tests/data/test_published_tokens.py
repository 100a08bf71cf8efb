"""Tests of bar_jax/data/published_tokens.py and of the jobs that pack such tokens and train."""

import io
import json
import logging
import os
import pickle
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from bar_jax.config.file import load_config
from bar_jax.config.validation import validate
from bar_jax.data import (
    DamagedImage,
    TokenFormat,
    open_cache,
    open_published_tokens,
    published_batches,
    published_fingerprint,
)
from bar_jax.data.caches import cache_path
from bar_jax.data.published_tokens import read_tokens
from bar_jax.generators import make_generator
from bar_jax.jobs import encode, pipeline, train_generator, train_tokenizer
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime.errors import InputError
from bar_jax.sampling.kept import real_images
from bar_jax.tokenizers import make_tokenizer
from bar_jax.training import restore
from bar_jax.training.generator import validation_batches, validation_loss
from bar_jax.training.step import stream_key

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (16, 16)  # tokens and bits of the tiny configs
FORMAT = TokenFormat("bits", 16, (4, 4))
CLASSES = ("n01440764", "n01443537", "n02102040")


def tokens_of(index, mirrored=False, shape=SHAPE):
    """What the published tokenizer made of file `index`: [N, K]."""
    return np.random.default_rng([index, mirrored]).integers(0, 2, shape, dtype=np.uint8)


def write_tokens(root, counts, dtype=bool, classes=CLASSES):
    """Writes files class by class, each class backwards; file i of the sorted list has tokens i."""
    index = 0
    for name, count in zip(classes, counts, strict=True):
        (root / name).mkdir(parents=True)
        for i in reversed(range(count)):
            flat = (tokens_of(index + i, m).reshape(-1).astype(dtype) for m in (False, True))
            path = root / name / f"{name}_{i:04}.JPEG.npz"
            np.savez(path, **dict(zip(("tokens", "tokens_flip"), flat, strict=True)))
        index += count
    return root


@pytest.fixture
def root(tmp_path):
    """45 files of three classes."""
    return write_tokens(tmp_path / "published", (20, 10, 15))


def opened(root, validation=False, train_split="", validation_split="", mirrored=True):
    return open_published_tokens(
        str(root), train_split, validation_split, validation=validation,
        token_format=FORMAT, mirrored=mirrored,
    )  # fmt: skip


def tiny_config(root, workdir, **changes):
    """BAR-B at the tiny size, from the tokens in `root`."""
    config = load_config(f"{ROOT}/configs/masked_bit/bar_b.py:tiny")
    config.workdir = str(workdir)
    config.data.update(dict(source="tokens", path=str(root), num_classes=3))
    config.data.update(dict(train_split="", validation_split=""))
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    validate(config)
    return config


# --- one file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_bits_of_a_file(tmp_path, dtype):
    """Token after token, the bits of each side by side."""
    flat = np.array([1, 0, 0, 1, 1, 1], dtype)
    np.savez(tmp_path / "a.npz", tokens=flat, tokens_flip=flat[::-1])
    read = read_tokens(str(tmp_path / "a.npz"), TokenFormat("bits", 2, (1, 3)), mirrored=True)
    assert {name: bits.tolist() for name, bits in read.items()} == {
        "tokens": [[1, 0], [0, 1], [1, 1]],
        "tokens_mirrored": [[1, 1], [1, 0], [0, 1]],
    }
    assert read["tokens"].dtype == np.uint8


def test_a_compressed_file(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", tokens=tokens_of(0).reshape(-1))
    read = read_tokens(str(tmp_path / "a.npz"), FORMAT, mirrored=False)
    np.testing.assert_array_equal(read["tokens"], tokens_of(0))


def _npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _flipped_byte(content: bytes) -> bytes:
    """One bit of the first array's values changed: only the archive's checksum tells."""
    values = bytearray(content)
    values[200] ^= 1
    return bytes(values)


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


BITS = np.zeros(256, bool)
GOOD = _npz(tokens=BITS, tokens_flip=BITS)
DAMAGED = {
    "empty": (b"", "not a zip file"),
    "text": (b"tokens", "not a zip file"),
    "truncated": (GOOD[:-100], "not a zip file"),
    "checksum": (_flipped_byte(GOOD), "CRC"),
    "npy": (_npy(BITS), "not a zip file"),
    "pickle": (pickle.dumps(BITS), "not a zip file"),
    "no arrays": (_npz(), "no array 'tokens'"),
    "no mirror image": (_npz(tokens=BITS), "no array 'tokens_flip'"),
    "too few bits": (
        _npz(tokens=BITS[:240], tokens_flip=BITS),
        "tokens: bool[240], not bool[256] of 16 tokens of 16 bits",
    ),
    "too many bits": (_npz(tokens=BITS, tokens_flip=np.zeros(257, bool)), "tokens_flip: bool[257]"),
    "not flat": (_npz(tokens=BITS.reshape(16, 16), tokens_flip=BITS), "tokens: bool[16, 16]"),
    "integers": (_npz(tokens=BITS.astype(int), tokens_flip=BITS), "tokens: int64[256]"),
    "floats": (_npz(tokens=BITS, tokens_flip=BITS.astype(np.float32)), "tokens_flip: float32[256]"),
    "no bits": (_npz(tokens=BITS.astype(np.uint8) + 2, tokens_flip=BITS), "values up to 2"),
    "objects": (_npz(tokens=np.array([Evil()] * 256), tokens_flip=BITS), "Object arrays cannot be"),
}


@pytest.mark.parametrize("content, reason", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file(tmp_path, monkeypatch, content, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DamagedImage) as error:
        read_tokens(str(tmp_path / "a.npz"), FORMAT, mirrored=True)
    assert error.value.name == str(tmp_path / "a.npz")
    assert reason in error.value.reason
    assert os.listdir() == ["a.npz"]


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(DamagedImage, match="No such file"):
        read_tokens(str(tmp_path / "a.npz"), FORMAT, mirrored=True)


def test_mirror_images_are_not_needed_where_they_are_not_used(tmp_path):
    np.savez(tmp_path / "a.npz", tokens=tokens_of(0).reshape(-1))
    assert read_tokens(str(tmp_path / "a.npz"), FORMAT, mirrored=False).keys() == {"tokens"}


# --- a file of moments ---------------------------------------------------------------------------

MOMENTS = TokenFormat("float32", 4, (2, 3))  # two channels' means, then their log-variances


def moments_of(index, mirrored=False):
    """Published moments of image `index`, [4, 2, 3]."""
    return np.random.default_rng([index, mirrored]).standard_normal((4, 2, 3), np.float32)


def test_moments_of_a_file(tmp_path):
    """Token after token in raster order, its means before its log-variances."""
    file = tmp_path / "a.npz"
    np.savez(file, moments=moments_of(0), moments_flip=moments_of(0, True))
    read = read_tokens(str(file), MOMENTS, mirrored=True)
    for name, moments in (("tokens", moments_of(0)), ("tokens_mirrored", moments_of(0, True))):
        assert (read[name].shape, read[name].dtype) == ((6, 4), np.float32)
        np.testing.assert_array_equal(read[name][4], moments[:, 1, 1])


GOOD_MOMENTS = np.zeros((4, 2, 3), np.float32)
DAMAGED_MOMENTS = {
    "bits": (_npz(tokens=BITS, tokens_flip=BITS), "no array 'moments'"),
    "no mirror image": (_npz(moments=GOOD_MOMENTS), "no array 'moments_flip'"),
    "another shape": (
        _npz(moments=np.zeros((32, 16, 16), np.float32), moments_flip=GOOD_MOMENTS),
        "moments: float32[32, 16, 16], not float32[4, 2, 3], 4 moments of 2 x 3 tokens",
    ),
    "half": (
        _npz(moments=GOOD_MOMENTS, moments_flip=GOOD_MOMENTS.astype(np.float16)),
        "moments_flip: float16[4, 2, 3], not float32[4, 2, 3]",
    ),
    "not finite": (_npz(moments=GOOD_MOMENTS + np.inf), "moments: numbers that are not finite"),
}


@pytest.mark.parametrize("content, reason", DAMAGED_MOMENTS.values(), ids=DAMAGED_MOMENTS)
def test_a_damaged_file_of_moments(tmp_path, content, reason):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DamagedImage) as error:
        read_tokens(str(tmp_path / "a.npz"), MOMENTS, mirrored=True)
    assert error.value.name == str(tmp_path / "a.npz")
    assert reason in error.value.reason


# --- the folder ----------------------------------------------------------------------------------


def test_classes_and_files_are_sorted(root):
    """Sorted class folders are the labels, whatever order they were written in."""
    source = opened(root, validation_split="unused")
    assert (source.class_names, source.num_classes) == (CLASSES, 3)
    np.testing.assert_array_equal(source.labels, [0] * 20 + [1] * 10 + [2] * 15)
    for i in (0, 19, 20, 44):
        np.testing.assert_array_equal(source[i]["tokens"], tokens_of(i))
        np.testing.assert_array_equal(source[i]["tokens_mirrored"], tokens_of(i, True))


def test_other_files_are_ignored(root):
    (root / CLASSES[0] / "notes.txt").write_text("hello")
    (root / CLASSES[0] / ".hidden.npz").write_text("hello")
    (root / "README").write_text("hello")
    assert len(opened(root, validation_split="unused")) == 45


@pytest.mark.parametrize(
    "validation_split, training, validating",
    [("", [i for i in range(45) if i not in (19, 39)], [19, 39]), (".", range(45), [0, 20, 40])],
    ids=["every 20th is held out", "none is held out"],
)
def test_validation_without_a_directory_of_its_own(root, validation_split, training, validating):
    for validation, expected in ((False, training), (True, validating)):
        source = opened(root, validation, validation_split=validation_split)
        assert len(source) == len(source.labels) == len(expected)
        for row, i in enumerate(expected):
            np.testing.assert_array_equal(source[row]["tokens"], tokens_of(i))


def test_splits_in_directories(tmp_path):
    write_tokens(tmp_path / "train", (2, 1, 1))
    write_tokens(tmp_path / "val", (1, 1, 1))
    fields = dict(train_split="train", validation_split="val")
    assert [len(opened(tmp_path, v, **fields)) for v in (False, True)] == [4, 3]


def test_splits_must_have_the_same_classes(tmp_path):
    write_tokens(tmp_path / "train", (1, 1, 1))
    write_tokens(tmp_path / "val", (1, 1), classes=CLASSES[:2])
    with pytest.raises(InputError, match=f"data.validation_split: .*: {CLASSES[2]}, expected"):
        opened(tmp_path, True, train_split="train", validation_split="val")


def test_a_folder_without_tokens(tmp_path):
    (tmp_path / "n01440764").mkdir()
    with pytest.raises(InputError, match="data.path: found no .npz files in the 1 class folders"):
        opened(tmp_path)


def test_a_missing_folder(tmp_path):
    with pytest.raises(InputError, match="data.path: found no directory .*nowhere"):
        opened(tmp_path / "nowhere")


def test_the_fingerprint_is_of_the_content(root, tmp_path):
    first = published_fingerprint(str(root), ["", ""])
    moved = shutil.copytree(root, tmp_path / "moved")
    assert published_fingerprint(str(moved), ["", ""]) == first
    shutil.copy(moved / CLASSES[1] / "n01443537_0001.JPEG.npz", moved / CLASSES[1] / "n0.npz")
    assert published_fingerprint(str(moved), ["", ""]) != first


# --- damaged files in a folder -------------------------------------------------------------------


def damage(root, *indices):
    """Cuts off files of the sorted list; returns their names."""
    source = opened(root, validation_split="unused")
    names = [os.path.join(root, source.files[i]) for i in indices]
    for name in names:
        Path(name).write_bytes(GOOD[:-1])
    return names


def test_damaged_files_are_named_and_left_out(root, caplog):
    names = damage(root, 3, 41)
    source = opened(root, validation_split="unused")
    with caplog.at_level(logging.WARNING, "bar_jax"):
        [batch] = published_batches(source, 1, 45, on_damaged="skip")
    kept = [i for i in range(1, 45) if i not in (3, 41)]
    assert batch["index"].tolist() == kept
    np.testing.assert_array_equal(batch["tokens"], [tokens_of(i) for i in kept])
    assert [name in line for name, line in zip(names, caplog.messages, strict=True)] == [True, True]


def test_a_damaged_file_is_refused(root):
    [name] = damage(root, 3)
    with pytest.raises(InputError, match=f"^{name}: found damaged tokens .*not a zip file"):
        list(published_batches(opened(root), 0, 43, on_damaged="refuse"))


def test_tokens_of_another_tokenizer_end_the_run_at_once(tmp_path, caplog):
    """Not a warning for each of a million files."""
    root = write_tokens(tmp_path, (100, 0, 0))
    other = TokenFormat("bits", 14, (4, 4))
    source = open_published_tokens(
        str(root), "", "x", validation=False, token_format=other, mirrored=True
    )
    with pytest.raises(InputError, match="no readable file in 100, such as .*bool.256.*14 bits"):
        list(published_batches(source, 0, 100, on_damaged="skip"))
    assert not caplog.messages


# --- packed --------------------------------------------------------------------------------------


def test_the_packed_cache_holds_what_the_files_do(root, tmp_path):
    [name] = damage(root, 20)
    config = tiny_config(root, tmp_path / "run", data__validation_split=".")
    summary = encode.run(config)
    assert [summary[f"cached_{s}_images"] for s in ("train", "validation")] == [44, 2]
    cache = open_cache(tmp_path / "run/cache/train")
    examples = cache.read(range(44))
    kept = [i for i in range(45) if i != 20]
    np.testing.assert_array_equal(examples["index"], kept)
    np.testing.assert_array_equal(examples["label"], np.repeat([0, 1, 2], (20, 9, 15)))
    np.testing.assert_array_equal(examples["tokens"], [tokens_of(i) for i in kept])
    np.testing.assert_array_equal(examples["tokens_mirrored"], [tokens_of(i, True) for i in kept])
    validation = open_cache(tmp_path / "run/cache/validation")
    np.testing.assert_array_equal(validation.read([0, 1])["tokens"], [tokens_of(0), tokens_of(40)])
    assert not validation.mirrored


def test_moments_are_packed(tmp_path):
    """Two images of a class each, as MAR's cache has them, at 4 x 4 tokens of 16 channels."""
    moments = np.random.default_rng(0).standard_normal((2, 2, 32, 4, 4), np.float32)
    for name, (own, flipped) in zip(CLASSES, moments, strict=False):
        (tmp_path / "published" / name).mkdir(parents=True)
        np.savez(tmp_path / "published" / name / "0.npz", moments=own, moments_flip=flipped)
    config = tiny_config(
        tmp_path / "published", tmp_path / "run", data__num_classes=2, data__validation_split=".",
        model__tokenizer__kind="kl_vae", model__head__kind="diffusion", job="encode",
    )  # fmt: skip
    assert encode.run(config)["cached_train_images"] == 2
    cache = open_cache(tmp_path / "run/cache/train", dtype="float32", width=32, grid=(4, 4))
    read = cache.read([0, 1])
    np.testing.assert_array_equal(read["tokens"], moments[:, 0].reshape(2, 32, 16).swapaxes(1, 2))
    flipped = moments[:, 1].reshape(2, 32, 16).swapaxes(1, 2)
    np.testing.assert_array_equal(read["tokens_mirrored"], flipped)


def test_packing_goes_on(root, tmp_path):
    config = tiny_config(root, tmp_path / "run")
    encode.run(config)
    folder = tmp_path / "run/cache/train"
    first, second = sorted(folder.glob("tokens-*"))
    written, size = first.stat().st_mtime_ns, second.stat().st_size
    second.unlink()
    (folder / "header.json").unlink()
    encode.run(config)
    assert (first.stat().st_mtime_ns, second.stat().st_size) == (written, size)


@pytest.mark.parametrize("field", ["fingerprint", "preprocessing"])
def test_other_tokens_are_not_mixed_in(root, tmp_path, field):
    config = tiny_config(root, tmp_path / "run")
    encode.run(config)
    old = root / CLASSES[2] / "n02102040_0000.JPEG.npz"
    if field == "fingerprint":
        old.write_bytes(GOOD)
    else:  # the same number of files, another list
        (root / CLASSES[2] / "n02102040_0014.JPEG.npz").rename(root / CLASSES[2] / "other.npz")
    with pytest.raises(InputError, match=f"a cache of tokens with {field}"):
        encode.run(config)


def test_the_number_of_classes_is_checked(root, tmp_path):
    config = tiny_config(root, tmp_path / "run", data__num_classes=4)
    with pytest.raises(InputError, match="data.num_classes: found 4, expected 3, as the data"):
        encode.run(config)


@pytest.mark.parametrize("job", [pipeline, train_tokenizer])
def test_jobs_that_need_images_say_so(root, tmp_path, job):
    config = tiny_config(root, tmp_path / "run", job=job.__name__.rpartition(".")[2])
    with pytest.raises(InputError, match=f"data.source: found 'tokens', .* job={config.job}"):
        job.run(config)


def test_kept_halves_need_images(root, tmp_path):
    config = tiny_config(root, tmp_path / "run", job="sample", sample__keep="upper")
    with pytest.raises(InputError, match="data.source: found 'tokens', which holds no images"):
        real_images(config, np.zeros(1, int))


# --- trained on ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(one_device, tmp_path_factory):
    """train_generator in a workdir without tokenizer or cache: its config, summary and log."""
    folder = tmp_path_factory.mktemp("published")
    config = tiny_config(write_tokens(folder / "tokens", (20, 10, 15)), folder / "run")
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore.logger, "info", lambda text, *args: lines.append(text % args))
        summary = train_generator.run(config)
        yield config, summary, lines


def test_the_generator_trains_on_published_tokens(run):
    _, summary, _ = run
    assert (summary["generator_step"], summary["cached_train_images"]) == (2, 43)
    assert 0 < summary["generator_loss_bits"] < 3
    assert summary["tokenizer_fingerprint"].startswith("published-")


def test_without_a_tokenizer_no_pictures_are_drawn_and_the_log_says_so_once(run):
    config, _, lines = run
    told = [line for line in lines if "no tokenizer" in line]
    assert told == [f"no tokenizer in {config.workdir}/tokenizer, so no images are drawn"]
    assert not list(Path(config.workdir).glob("*.png"))


def test_the_validation_loss_is_of_the_held_out_tokens(run):
    """Measured again on the two files that are held out."""
    config, summary, _ = run
    mesh = mesh_lib.make_mesh(**config.mesh)
    generator = restore.load_generator(config, mesh)
    cache = open_cache(cache_path(config, "validation"))
    np.testing.assert_array_equal(cache.read([0, 1])["tokens"], [tokens_of(19), tokens_of(39)])
    with jax.set_mesh(mesh):
        batches = validation_batches(cache, mesh, 16, 16)
        modules, key = (make_generator(config), make_tokenizer(config)), stream_key(0, "validation")
        again = validation_loss(*modules, generator.params, batches, key)
    assert again["bits_per_bit"] == pytest.approx(summary["generator_loss_bits"], rel=1e-5)


def test_packed_files_are_not_needed_any_more(run, tmp_path):
    config, summary, _ = run
    moved = config.copy_and_resolve_references()
    moved.data.path = str(tmp_path / "nowhere")
    assert train_generator.run(moved)["generator_step"] == 2
    shutil.copytree(config.workdir, tmp_path / "unfinished")
    (tmp_path / "unfinished/cache/validation/header.json").unlink()
    moved.workdir = str(tmp_path / "unfinished")
    with pytest.raises(InputError, match="data.path: found no directory .*nowhere"):
        train_generator.run(moved)


def test_tokens_of_images_do_not_pass_for_published_ones(run, tmp_path):
    config, *_ = run
    moved = config.copy_and_resolve_references()
    moved.workdir = str(shutil.copytree(config.workdir, tmp_path / "run"))
    moved.data.path = str(tmp_path / "nowhere")
    header = tmp_path / "run/cache/train/header.json"
    fields = json.loads(header.read_text())
    header.write_text(json.dumps(fields | {"preprocessing": {"source": "tfds"}}))
    with pytest.raises(InputError, match="found tokens of images, and no directory"):
        train_generator.run(moved)


@pytest.mark.slow
def test_a_tokenizer_in_the_workdir_draws_pictures(run, finished_quickstart, tmp_path):
    """Trained elsewhere on images, then put there."""
    config, *_ = run
    shutil.copytree(finished_quickstart.folder / "tokenizer", tmp_path / "run/tokenizer")
    drawing = config.copy_and_resolve_references()
    drawing.workdir = str(tmp_path / "run")
    quickstart = load_config(f"{ROOT}/configs/quickstart.py:tiny")
    drawing.model.tokenizer = quickstart.model.tokenizer
    train_generator.run(drawing)
    assert (tmp_path / "run/samples_during_training.png").exists()
