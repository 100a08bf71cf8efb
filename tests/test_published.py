"""Tests of bar_jax/published.py and of `Pipeline.from_published`; jobs: tests/jobs/."""

import jax
import numpy as np
import pytest
import safetensors.numpy

import bar_jax
from bar_jax import models, published
from bar_jax.config_file import load_config
from bar_jax.errors import InputError
from bar_jax.mesh import make_mesh
from bar_jax.pretrained import manifest

# Published model -> the part it is, and a config of it.
MODELS = {
    "bar_b": ("generator", "bar_b"),
    "bar_b_patch2": ("generator", "bar_b_2"),
    "bar_b_patch4": ("generator", "bar_b_4"),
    "bar_l": ("generator", "bar_l"),
    "bar_l_res512": ("generator", "bar_l_512"),
    "bar_fsq_16bits": ("tokenizer", "bar_b"),
    "bar_fsq_10bits_res512": ("tokenizer", "bar_l_512"),
}
PARTS = ("generator", "tokenizer")


def tensors_of(path):
    return safetensors.numpy.load_file(path)


@pytest.mark.parametrize("known", manifest.published(), ids=lambda known: known.model)
def test_a_published_config_has_exactly_the_published_tensors(known):
    """Names and shapes that follow from our model are those that third_party/ states."""
    part, name = MODELS[known.model]
    config = load_config(f"configs/masked_bit/{name}.py")
    needed, computed = published.shapes(config, part)
    if part == "tokenizer":  # whose positions are resized
        assert needed["encoder.siglip.embeddings.position_embedding.weight"] == (None, 1152)
        needed["encoder.siglip.embeddings.position_embedding.weight"] = (256, 1152)
    else:
        assert computed == known.optional
    assert needed == known.tensors


@pytest.mark.parametrize("part", PARTS)
def test_reads_and_loads(published_config, published_files, part):
    """Arrays on the mesh, laid out as a trained model's would be."""
    mesh = make_mesh(2, 2, 2)
    tensors = published.read(published_config, part, published_files[part])
    trained = published.load(published_config, part, tensors, mesh)
    shapes = models.param_shapes(published._init(published_config, part), mesh)
    kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)  # noqa: E731
    assert kinds(trained.params) == kinds(shapes)
    assert trained.step == 0


def test_export_is_the_inverse(published_config, published_files):
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    tensors = published.read(published_config, "generator", published_files["generator"])
    params = published.load(published_config, "generator", tensors, mesh).params
    found = published.generator_tensors(published_config, jax.tree.map(np.asarray, params))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        tolerance = 1e-6 if ".rope." in name else 0
        np.testing.assert_allclose(found[name], tensor, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.slow
def test_a_file_of_full_size_comes_back(tmp_path):
    """Random weights under the names of bar_b.bin, 1.7 GB: read, laid out, exported."""
    known = next(model for model in manifest.published() if model.model == "bar_b")
    rng, path = np.random.default_rng(0), tmp_path / "bar_b.safetensors"
    written = {n: rng.standard_normal(shape, np.float32) for n, shape in known.tensors.items()}
    safetensors.numpy.save_file({f"_orig_mod.module.{n}": t for n, t in written.items()}, path)
    config, mesh = load_config("configs/masked_bit/bar_b.py"), make_mesh(1, 8, 1)
    trained = published.load(config, "generator", published.read(config, "generator", path), mesh)
    path.unlink()  # pytest would keep it
    exported = published.generator_tensors(config, jax.tree.map(np.asarray, trained.params))
    assert exported.keys() == known.tensors.keys() | known.optional.keys()
    assert [n for n, t in written.items() if not np.array_equal(exported[n], t)] == []


def test_rotary_tables_may_lack_but_not_differ_in_shape(published_config, published_files):
    tensors = tensors_of(published_files["generator"])
    rest = {name: tensor for name, tensor in tensors.items() if ".rope." not in name}
    safetensors.numpy.save_file(rest, published_files["generator"])
    published.read(published_config, "generator", published_files["generator"])
    rest["blocks.1.attn.rope.freqs_cos"] = np.zeros((3, 12), np.float32)
    safetensors.numpy.save_file(rest, published_files["generator"])
    with pytest.raises(InputError, match=r"freqs_cos: \[3, 12\], expected \[21, 12\]"):
        published.read(published_config, "generator", published_files["generator"])


def test_what_serves_the_tokenizers_training_may_lack(published_config, published_files):
    tensors = tensors_of(published_files["tokenizer"])
    parts = ("encoder.frozen", "encoder.siglip.head", "decoder.clip_projector")
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(parts)}
    safetensors.numpy.save_file(rest, published_files["tokenizer"])
    assert len(rest) < len(tensors)
    published.read(published_config, "tokenizer", published_files["tokenizer"])


@pytest.mark.parametrize("part, other", [PARTS, PARTS[::-1]])
def test_the_other_parts_file(published_config, published_files, part, other):
    with pytest.raises(InputError, match=f"{other}.safetensors: found tensors that do not fit"):
        published.read(published_config, part, published_files[other])


@pytest.mark.parametrize(
    "part, field, kind",
    [
        ("generator", "model.head.kind", "bit"),
        ("generator", "model.generator.kind", "mar"),
        ("tokenizer", "model.tokenizer.kind", "pixels"),
    ],
)
def test_kinds_that_were_not_published(published_config, published_files, part, field, kind):
    published_config.update_from_flattened_dict({field: kind})
    with pytest.raises(InputError, match=f"{field}: found '{kind}', expected .* were published"):
        published.read(published_config, part, published_files[part])


def test_a_head_that_was_not_published_is_not_exported(published_config):
    published_config.model.head.kind = "linear"
    with pytest.raises(InputError, match="model.head.kind: found 'linear'"):
        published.generator_tensors(published_config, {})


# --- Pipeline.from_published ---------------------------------------------------------------------


def test_a_config_of_a_wrong_value(published_config, published_files):
    published_config.sample.temperature = -1.0
    with pytest.raises(InputError, match="sample.temperature"):
        bar_jax.Pipeline.from_published(published_config, **published_files)


def test_a_config_file(published_files):
    """Found by name; its model is larger than the file's."""
    with pytest.raises(InputError, match="expected those of bar_fsq_16bits, the configured"):
        bar_jax.Pipeline.from_published("configs/masked_bit/bar_b.py", **published_files)
