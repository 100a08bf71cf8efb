"""Tests of bar_jax/pretrained/files.py: what is read, what is written, what is refused."""

import argparse
import collections
import os
import pickle
import sys
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from bar_jax.pretrained.files import read_tensors, write_safetensors
from bar_jax.runtime.errors import InputError

SUFFIXES = (".safetensors", ".npz", ".bin", ".pth", ".ckpt")


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    return {
        "layer.weight": rng.normal(size=(3, 5)).astype(np.float32),
        "layer.bias": rng.normal(size=3).astype(np.float32),
        "scale": np.array(2.5, np.float32),
        "count": np.arange(4),
    }


def torch_save(loaded, path, **options):
    torch = pytest.importorskip("torch")
    as_torch = lambda x: torch.from_numpy(x) if isinstance(x, np.ndarray) else x  # noqa: E731
    if isinstance(loaded, dict):
        loaded = {
            name: torch_tree(value, as_torch) if isinstance(value, dict) else as_torch(value)
            for name, value in loaded.items()
        }
    torch.save(loaded, path, **options)


def torch_tree(values, as_torch):
    return collections.OrderedDict((name, as_torch(value)) for name, value in values.items())


def write(path, tensors):
    """Writes a file of the format that its suffix names."""
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(tensors, path)
    elif path.suffix == ".npz":
        np.savez(path, **tensors)
    else:
        torch_save(tensors, path)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)


def refused(path, match):
    """The message, one line that begins with the file."""
    with pytest.raises(InputError, match=match) as error:
        read_tensors(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


# --- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_reads(tmp_path, tensors, suffix):
    path = tmp_path / f"file{suffix}"
    write(path, tensors)
    assert_same(read_tensors(path), tensors)


def test_reads_what_it_wrote(tmp_path, tensors):
    """Views too, whose rows do not lie one after another."""
    turned = {name: tensor.T for name, tensor in tensors.items()}
    write_safetensors(tmp_path / "file.safetensors", turned)
    assert_same(read_tensors(tmp_path / "file.safetensors"), turned)
    assert [file.name for file in tmp_path.iterdir()] == ["file.safetensors"]


def test_other_packages_read_what_it_wrote(tmp_path, tensors):
    write_safetensors(tmp_path / "file.safetensors", tensors)
    assert_same(safetensors.numpy.load_file(tmp_path / "file.safetensors"), tensors)


def test_reads_the_format_before_pytorch_1_6(tmp_path, tensors):
    torch_save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same(read_tensors(tmp_path / "old.pth"), tensors)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_floating_point_becomes_float32(tmp_path, dtype, suffix):
    torch = pytest.importorskip("torch")
    values = torch.tensor([[1.0, -2.5, 1e-3]]).to(getattr(torch, dtype))
    path = tmp_path / f"file{suffix}"
    if suffix == ".bin":
        torch.save({"w": values}, path)
    else:
        from safetensors.torch import save_file

        save_file({"w": values}, path)
    assert_same(read_tensors(path), {"w": values.float().numpy()})


def test_bfloat16_without_torch(tmp_path):
    """Written by hand: the numpy part of safetensors does not know it."""
    values = np.array([1.0, -2.5], jnp.bfloat16)
    header = b'{"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    path = tmp_path / "file.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + values.tobytes())
    assert_same(read_tensors(path), {"w": np.array([1.0, -2.5], np.float32)})


@pytest.mark.parametrize("prefix", ["_orig_mod.module.", "_orig_mod.", "module.", "module.module."])
def test_prefixes_are_taken_off(tmp_path, tensors, prefix):
    write(tmp_path / "file.npz", {prefix + name: tensor for name, tensor in tensors.items()})
    assert_same(read_tensors(tmp_path / "file.npz"), tensors)


def test_prefixes_inside_a_name_stay(tmp_path):
    inside = {"block.module.weight": np.ones(2, np.float32)}
    write(tmp_path / "file.npz", inside)
    assert_same(read_tensors(tmp_path / "file.npz"), inside)


@pytest.mark.parametrize("wrapping", ["state_dict", "model", "ema", "model_ema"])
def test_one_wrapping_is_taken_off(tmp_path, tensors, wrapping):
    torch_save({wrapping: tensors, "epoch": 3}, tmp_path / "file.pth")
    assert_same(read_tensors(tmp_path / "file.pth"), tensors)


def test_the_moving_average_comes_first(tmp_path, tensors):
    raw = {name: np.asarray(tensor + 1) for name, tensor in tensors.items()}
    torch_save({"model": raw, "model_ema": tensors}, tmp_path / "file.pth")
    assert_same(read_tensors(tmp_path / "file.pth"), tensors)


def test_options_beside_the_tensors_may_be_a_namespace(tmp_path, tensors):
    """MAR's checkpoints hold those of argparse; they are values and call nothing."""
    options = argparse.Namespace(batch_size=64, output_dir="./out", betas=(0.9, 0.95), seed=None)
    torch_save({"model_ema": tensors, "args": options, "epoch": 3}, tmp_path / "file.pth")
    assert_same(read_tensors(tmp_path / "file.pth"), tensors)


def test_a_model_may_have_a_tensor_of_a_wrappings_name(tmp_path):
    tensors = {"model": np.ones(2, np.float32), "ema": np.zeros(2, np.float32)}
    torch_save(tensors, tmp_path / "file.pth")
    assert_same(read_tensors(tmp_path / "file.pth"), tensors)


# --- what is refused -----------------------------------------------------------------------------


def test_no_such_file_names_a_close_one(tmp_path):
    (tmp_path / "bar_sfq_10bits_res512.bin").touch()
    path = tmp_path / "bar_fsq_10bits_res512.bin"
    message = refused(path, "found no such file")
    assert f"did you mean {tmp_path}/bar_sfq_10bits_res512.bin?" in message


@pytest.mark.parametrize("name", ["nowhere/file.npz", "file.npz"])
def test_no_such_file(tmp_path, name):
    assert "did you mean" not in refused(tmp_path / name, "found no such file")


@pytest.mark.parametrize("name", ["file.h5", "file"])
def test_unknown_suffix(tmp_path, name):
    (tmp_path / name).touch()
    refused(tmp_path / name, r"found the suffix '.*', expected one of \.safetensors, \.npz, \.bin")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "a pointer of Git LFS",
        ),
        ("\n<!DOCTYPE html><html>", "a web page"),
        ("<html lang=en>", "a web page"),
        ('<?xml version="1.0"?><Error><Code>AccessDenied', "a web page"),
    ],
)
@pytest.mark.parametrize("suffix", [".bin", ".safetensors", ".npz"])
def test_what_a_download_left_in_the_files_place(tmp_path, content, found, suffix):
    path = tmp_path / f"bar_b{suffix}"
    path.write_text(content)
    with pytest.raises(InputError, match=f"{path.name}: found an unreadable file: {found}"):
        read_tensors(path)


def test_a_folder(tmp_path):
    (tmp_path / "file.npz").mkdir()
    refused(tmp_path / "file.npz", "no such file")


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.999])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated(tmp_path, tensors, suffix, share):
    path = tmp_path / f"file{suffix}"
    write(path, tensors)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(path, "unreadable file")


def test_truncated_in_the_format_before_pytorch_1_6(tmp_path, tensors):
    path = tmp_path / "old.pth"
    torch_save(tensors, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-20])
    refused(path, "unreadable file")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_something_else(tmp_path, suffix):
    if suffix in (".bin", ".pth", ".ckpt"):
        pytest.importorskip("torch")
    path = tmp_path / f"file{suffix}"
    path.write_bytes(b"<html>404: not found</html>" * 100)
    refused(path, "unreadable file")


@pytest.mark.parametrize(
    "loaded, found",
    [
        ([1, 2], "found list"),
        ({}, "found {},"),
        ({"epoch": 3}, "found dict of 'epoch': int,"),
        ({0: np.ones(2)}, "found dict of 0: Tensor,"),
        ({"a": np.ones(2), "model": {}}, "found dict of 'a': Tensor, 'model': OrderedDict,"),
        ({"outer": {"model": {}}}, "found dict of 'outer': OrderedDict,"),
        (dict.fromkeys("abcd", 1), r"found dict of 'a': int, 'b': int, 'c': int, \.\.\.,"),
    ],
)
def test_not_a_state_dict(tmp_path, loaded, found):
    torch_save(loaded, tmp_path / "file.bin")
    refused(tmp_path / "file.bin", found)


def test_not_a_state_dict_in_an_npz(tmp_path):
    np.savez(tmp_path / "file.npz", text=np.array(["a"]))
    refused(tmp_path / "file.npz", "found text of type <U1")
    with (tmp_path / "file.npz").open("wb") as file:
        np.save(file, np.ones(3))
    refused(tmp_path / "file.npz", "unreadable file")


def test_two_tensors_of_one_name(tmp_path):
    write(tmp_path / "file.npz", {"w": np.ones(2), "module.w": np.ones(2)})
    refused(tmp_path / "file.npz", "found two tensors w")


def test_tensors_that_are_no_arrays(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.eye(3).to_sparse()}, tmp_path / "file.bin")
    refused(tmp_path / "file.bin", "no plain arrays")


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["pickle", "zip", "options", "npz"])
def test_nothing_in_a_file_is_executed(tmp_path, kind):
    trap, path = tmp_path / "executed", tmp_path / ("file.npz" if kind == "npz" else "file.bin")
    if kind == "pickle":
        pytest.importorskip("torch")
        path.write_bytes(pickle.dumps({"w": Touch(trap)}, protocol=2))
    elif kind == "zip":
        torch_save({"w": np.ones(2), "x": Touch(trap)}, path)
        assert zipfile.is_zipfile(path)
    elif kind == "options":
        torch_save({"w": np.ones(2), "args": argparse.Namespace(x=Touch(trap))}, path)
    else:
        np.savez(path, w=np.array([Touch(trap)], object))
    refused(path, "unreadable file" if kind == "npz" else r"a pickle that calls posix\.system")
    assert not trap.exists()


def test_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "file.bin").touch()
    refused(tmp_path / "file.bin", r'pip install "bar_jax\[torch\]"')


def test_a_path_that_cannot_be_written_to(tmp_path, tensors):
    with pytest.raises(InputError, match="nowhere/file.safetensors: found .*No such file"):
        write_safetensors(tmp_path / "nowhere/file.safetensors", tensors)
