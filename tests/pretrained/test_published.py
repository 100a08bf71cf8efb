"""Tests of bar_jax/pretrained/published.py and of `Pipeline.from_published`; jobs: tests/jobs/."""

import itertools
import math
import re

import jax
import numpy as np
import pytest
import safetensors.numpy

import bar_jax
from bar_jax.config import default_config
from bar_jax.config.file import load_config
from bar_jax.config.presets import tiny
from bar_jax.pretrained import bar_fsq, manifest, published, siglip2
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.mesh import make_mesh
from bar_jax.tokenizers import make_tokenizer
from bar_jax.training import restore

pytestmark = pytest.mark.slow
HOST_SIZES = list(itertools.product(("xar", "mar"), ("base", "large", "huge")))
# Published model -> the part it is, and a config of it.
MODELS = {
    "bar_b": ("generator", "bar_b"),
    "bar_b_patch2": ("generator", "bar_b_2"),
    "bar_b_patch4": ("generator", "bar_b_4"),
    "bar_l": ("generator", "bar_l"),
    "bar_l_res512": ("generator", "bar_l_512"),
    "bar_fsq_16bits": ("tokenizer", "bar_b"),
    "bar_fsq_10bits_res512": ("tokenizer", "bar_l_512"),
    "kl16": ("kl_vae", "bar_b"),
    **{f"{host}_{size}": (host, f"{host}_{size[0]}_host") for host, size in HOST_SIZES},
    "siglip2_so400m_patch16_naflex": ("encoder", "bar_b"),
}
PARTS = ("generator", "tokenizer")


def tensors_of(path):
    return safetensors.numpy.load_file(path)


@pytest.mark.parametrize(
    "known", [m for m in manifest.published() if m.model in MODELS], ids=lambda known: known.model
)
def test_a_published_config_has_exactly_the_published_tensors(known):
    """Names and shapes that follow from our model are those that third_party/ states."""
    part, name = MODELS[known.model]
    if part in HOSTS:
        needed, lacking = published.shapes(load_config(f"configs/basis/{name}.py"), "generator")
        assert (needed, lacking) == (known.tensors, known.optional)
        return
    config = load_config(f"configs/masked_bit/{name}.py")
    if part == "kl_vae":
        config.model.tokenizer.kind = "kl_vae"
        assert published.shapes(config, "tokenizer") == (known.tensors, {})
        sizes = (math.prod(shape) for shape in known.tensors.values())
        assert sum(sizes) == 66_456_019  # "66.46M"
        return
    if part == "encoder":
        assert siglip2.encoder_shapes(make_tokenizer(config)) == known.tensors
        return
    needed, lacking = published.shapes(config, part)
    assert needed == known.tensors
    if part == "generator":
        assert lacking == known.optional
    else:
        predictor = (n for n in known.optional if n.startswith(bar_fsq.PREDICTOR_PREFIX))
        assert lacking == {name: known.optional[name] for name in predictor}
        assert len(lacking) == 6


@pytest.mark.parametrize("part", PARTS)
def test_reads_and_loads(published_config, published_files, part):
    """Arrays on the mesh, laid out as a trained model's would be."""
    mesh = make_mesh(2, 2, 2)
    tensors = published.read(published_config, part, published_files[part])
    trained = published.load(published_config, part, tensors, mesh)
    shapes = restore.param_shapes(published._init(published_config, part), mesh)
    kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)  # noqa: E731
    assert kinds(trained.params) == kinds(shapes)
    assert trained.step == 0


def test_published_weights_of_a_bfloat16_config_are_used_in_float32(
    published_config, published_files
):
    """As a trained model's are: `sample.dtype` and `encode.dtype` say otherwise."""
    published_config.dtype, mesh = "bfloat16", make_mesh()
    found = {}
    for part in PARTS:
        tensors = published.read(published_config, part, published_files[part])
        found[part] = published.load(published_config, part, tensors, mesh).module
    assert found["tokenizer"].dtype == found["generator"].trunk.dtype == "float32"


@pytest.mark.parametrize("part", PARTS)
def test_export_is_the_inverse(published_config, published_files, part):
    """Rotary tables are computed; what is no part of our tokenizer is not written."""
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    tensors = published.read(published_config, part, published_files[part])
    params = published.load(published_config, part, tensors, mesh).params
    found = published.state_dict(published_config, part, jax.tree.map(np.asarray, params))
    expected = {n: x for n, x in tensors.items() if not n.startswith(bar_fsq.NOT_READ)}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        tolerance = 1e-6 if ".rope." in name else 0
        np.testing.assert_allclose(found[name], tensor, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.exhaustive
def test_a_file_of_full_size_comes_back(tmp_path):
    """Random weights under the names of bar_b.bin, 1.7 GB: read, laid out, exported."""
    known = next(model for model in manifest.published() if model.model == "bar_b")
    rng, path = np.random.default_rng(0), tmp_path / "bar_b.safetensors"
    written = {n: rng.standard_normal(shape, np.float32) for n, shape in known.tensors.items()}
    safetensors.numpy.save_file({f"_orig_mod.module.{n}": t for n, t in written.items()}, path)
    config, mesh = load_config("configs/masked_bit/bar_b.py"), make_mesh(1, 8, 1)
    trained = published.load(config, "generator", published.read(config, "generator", path), mesh)
    path.unlink()  # pytest would keep it
    exported = published.state_dict(config, "generator", jax.tree.map(np.asarray, trained.params))
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


def without(path, *parts):
    """Writes a file anew without the tensors whose names start with these parts."""
    tensors = tensors_of(path)
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(parts)}
    assert len(rest) < len(tensors)
    safetensors.numpy.save_file(rest, path)


def loaded(config, path):
    tensors = published.read(config, "tokenizer", path)
    return published.load(config, "tokenizer", tensors, make_mesh(2, 2, 2)).params


def test_what_serves_the_tokenizers_training_may_lack(published_config, published_files, caplog):
    """A feature predictor is drawn from the seed then, which is told."""
    caplog.set_level("INFO")
    whole = loaded(published_config, published_files["tokenizer"])
    assert not caplog.records
    parts = ("encoder.frozen", "encoder.siglip.head", "decoder.clip_projector")
    without(published_files["tokenizer"], *parts)
    fresh, again = (loaded(published_config, published_files["tokenizer"]) for _ in range(2))
    assert "no feature predictor in the file; a new one" in caplog.text
    kernels = [tree["feature_predictor"]["second"]["kernel"] for tree in (whole, fresh, again)]
    assert kernels[0].shape == kernels[1].shape and kernels[0].sharding == kernels[1].sharding
    assert np.std(kernels[1]) == pytest.approx(0.02, rel=0.1)
    np.testing.assert_array_equal(kernels[1], kernels[2])
    np.testing.assert_array_equal(whole["to_pixels"]["kernel"], fresh["to_pixels"]["kernel"])


def test_a_feature_predictor_that_is_not_configured_is_left_out(published_config, published_files):
    published_config.model.tokenizer.decoder.predictor_width = 0
    assert "feature_predictor" not in loaded(published_config, published_files["tokenizer"])


def test_a_feature_predictor_of_another_width(published_config, published_files):
    published_config.model.tokenizer.decoder.predictor_width = 32
    with pytest.raises(InputError, match=r"clip_projector.0.bias: \[64\], expected \[32\]"):
        published.read(published_config, "tokenizer", published_files["tokenizer"])


def test_a_tokenizer_for_images_of_another_size(published_config, published_files):
    """The decoder's positions fit one grid; the message names the field."""
    published_config.data.image_size = 128
    path = published_files["tokenizer"]
    expected = f"data.image_size: found 128, expected 64: {path} has the positions of 16 tokens"
    with pytest.raises(InputError, match=expected):
        published.read(published_config, "tokenizer", path)


def test_a_published_tokenizer_for_images_of_another_size(tmp_path):
    known = next(model for model in manifest.published() if model.model == "bar_fsq_16bits")
    tensors = {name: np.broadcast_to(np.float32(0), s) for name, s in known.tensors.items()}
    config = load_config("configs/tokenizer/bar_fsq.py")
    config.data.image_size = 512
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "read_tensors", lambda path: tensors)
        with pytest.raises(InputError, match="data.image_size: found 512, expected 256: it has"):
            published.read(config, "tokenizer", "it")


# --- read_encoder --------------------------------------------------------------------------------


@pytest.fixture
def siglip2_file(published_files, tmp_path):
    """The tower of the small tokenizer, as SigLIP2's own file has it."""
    found = tensors_of(published_files["tokenizer"])
    tower = {n: x for n, x in found.items() if n.startswith("encoder.siglip.")}
    tensors = {n.replace("encoder.siglip.", "vision_model."): x for n, x in tower.items()}
    tensors |= {"text_model.head.bias": np.zeros(3, np.float32), "logit_scale": np.ones(1)}
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(tensors, path)
    return path


def test_reads_the_encoder(published_config, published_files, siglip2_file):
    """From either file the same: the frozen copy, not the trained one."""
    own, copy = (
        siglip2.read_encoder(make_tokenizer(published_config), path)
        for path in (siglip2_file, published_files["tokenizer"])
    )
    jax.tree.map(np.testing.assert_array_equal, own, copy)
    params = published._params(published_config, "tokenizer")
    params = {name: params[name] for name in siglip2.ENCODER}
    kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert kinds(own) == kinds(params)
    frozen = tensors_of(published_files["tokenizer"])["encoder.frozen_post_layernorm.weight"]
    np.testing.assert_array_equal(own["encoder_vit"]["norm"]["scale"], frozen)


def test_another_variant_of_siglip2(published_config, siglip2_file):
    published_config.model.tokenizer.encoder.update(dict(width=96, position_grid=16))
    with pytest.raises(InputError) as error:
        siglip2.read_encoder(make_tokenizer(published_config), siglip2_file)
    assert str(error.value) == (
        f"{siglip2_file}: found a SigLIP2 of width 48, depth 2, positions 49, "
        "values of a patch 768, expected width 96, depth 2, positions 256, "
        "values of a patch 768, as model.tokenizer.encoder says"
    )


def test_a_damaged_encoder(published_config, siglip2_file):
    without(siglip2_file, "vision_model.encoder.layers.1.layer_norm1.bias")
    missing = "1 missing:\n    vision_model.encoder.layers.1.layer_norm1.bias$"
    with pytest.raises(InputError, match=missing):
        siglip2.read_encoder(make_tokenizer(published_config), siglip2_file)


def test_no_encoder(published_config, published_files):
    with pytest.raises(InputError, match=f"no tensor {siglip2.PREFIXES[0]}"):
        siglip2.read_encoder(make_tokenizer(published_config), published_files["generator"])


@pytest.mark.parametrize("part, other", [PARTS, PARTS[::-1]])
def test_the_other_parts_file(published_config, published_files, part, other):
    with pytest.raises(InputError, match=f"{other}.safetensors: found tensors that do not fit"):
        published.read(published_config, part, published_files[other])


@pytest.mark.parametrize(
    "part, field, kind, expected",
    [
        ("generator", "model.head.kind", "bit", "'masked_bit'"),
        ("generator", "model.head.kind", "diffusion", "'masked_bit'"),
        ("tokenizer", "model.tokenizer.kind", "pixels", "'bar_fsq' | 'kl_vae'"),
    ],
)
def test_kinds_that_were_not_published(
    published_config, published_files, part, field, kind, expected
):
    published_config.update_from_flattened_dict({field: kind})
    told = re.escape(f"{field}: found '{kind}', expected {expected}: no others were published")
    with pytest.raises(InputError, match=told):
        published.read(published_config, part, published_files[part])


# --- hosts of real-valued tokens -----------------------------------------------------------------

HOSTS = {"xar": "flow", "mar": "diffusion"}  # and their heads


def host_config(kind, basis):
    """A tiny host on the pixels' 4 x 4 tokens."""
    config = tiny(default_config())
    config.model.tokenizer.kind = "pixels"
    config.model.basis.kind = basis
    config.model.generator.update(dict(kind=kind, shared_time=True))
    config.model.head.kind = HOSTS[kind]
    return config


def host_tensors(config):
    """Random tensors of all names that a published file has, buffers as they are computed."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: rng.normal(size=s.shape).astype(np.float32),
        published._params(config, "generator"),
    )
    found = published.state_dict(config, "generator", params)
    return {name: np.ascontiguousarray(tensor) for name, tensor in found.items()}


@pytest.mark.parametrize("basis", ["identity", "learned"])
@pytest.mark.parametrize("kind", HOSTS)
def test_a_host_comes_back_bit_for_bit(tmp_path, kind, basis):
    """From a file on a mesh and back; A among the tensors where there is one."""
    config, path = host_config(kind, basis), tmp_path / "host.safetensors"
    tensors = host_tensors(config)
    assert ("basis" in tensors) == (basis == "learned")
    safetensors.numpy.save_file(tensors, path)
    trained = published.load(
        config, "generator", published.read(config, "generator", path), make_mesh(2, 2, 2)
    )
    found = published.state_dict(config, "generator", jax.tree.map(np.asarray, trained.params))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name, strict=True)


@pytest.mark.parametrize("kind", HOSTS)
def test_a_host_without_a_basis_starts_one_to_be_learned(tmp_path, kind):
    """The identity, in xAR's order of 2 x 2 cells."""
    path = tmp_path / "host.safetensors"
    safetensors.numpy.save_file(host_tensors(host_config(kind, "identity")), path)
    config = host_config(kind, "learned")
    tensors = published.read(config, "generator", path)
    matrix = published.load(config, "generator", tensors, make_mesh(2, 2, 2)).params["basis"]
    cells = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    np.testing.assert_array_equal(matrix, np.eye(16)[cells if kind == "xar" else range(16)])


@pytest.mark.parametrize("kind", HOSTS)
def test_a_basis_that_is_not_configured_is_refused(tmp_path, kind):
    """Its sequence would be read as tokens."""
    path = tmp_path / "host.safetensors"
    safetensors.numpy.save_file(host_tensors(host_config(kind, "learned")), path)
    with pytest.raises(InputError, match="1 unused:\n    basis"):
        published.read(host_config(kind, "identity"), "generator", path)


def test_a_basis_of_another_size_is_refused(tmp_path):
    config, path = host_config("mar", "learned"), tmp_path / "host.safetensors"
    tensors = host_tensors(config) | {"basis": np.eye(9, dtype=np.float32)}
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(InputError, match=r"basis: \[9, 9\], expected \[16, 16\]"):
        published.read(config, "generator", path)


def test_buffers_of_xar_may_lack(tmp_path):
    config, path = host_config("xar", "identity"), tmp_path / "host.safetensors"
    tensors = host_tensors(config)
    buffers = [name for name in tensors if ".rope." in name or name == "mask"]
    assert len(buffers) == 1 + 3 * (2 + 2)
    rest = {name: tensor for name, tensor in tensors.items() if name not in buffers}
    safetensors.numpy.save_file(rest, path)
    assert published.read(config, "generator", path).keys() == rest.keys()


@pytest.mark.parametrize("kind, other", [("xar", "mar"), ("mar", "xar")])
def test_the_other_host_is_named(monkeypatch, kind, other):
    """Of full size: the published model that the file is of, and the one that is configured."""
    known = next(m for m in manifest.published() if m.model == f"{other}_base")
    tensors = {n: np.broadcast_to(np.float32(0), shape) for n, shape in known.tensors.items()}
    monkeypatch.setattr(published, "read_tensors", lambda path: tensors)
    config = load_config(f"configs/basis/{kind}_b_host.py")
    told = f"it: found the tensors of {other}_base .* expected those of {kind}_base, the configured"
    with pytest.raises(InputError, match=told):
        published.read(config, "generator", "it")


def test_a_head_that_was_not_published_is_not_exported(published_config):
    published_config.model.head.kind = "linear"
    with pytest.raises(InputError, match="model.head.kind: found 'linear'"):
        published.state_dict(published_config, "generator", {})


# --- Pipeline.from_published ---------------------------------------------------------------------


def test_a_config_of_a_wrong_value(published_config, published_files):
    published_config.sample.temperature = -1.0
    with pytest.raises(InputError, match="sample.temperature"):
        bar_jax.Pipeline.from_published(published_config, **published_files)


def test_a_config_file(published_files):
    """Found by name; its model is larger than the file's."""
    with pytest.raises(InputError, match="expected those of bar_fsq_16bits, the configured"):
        bar_jax.Pipeline.from_published("configs/masked_bit/bar_b.py", **published_files)


@pytest.mark.parametrize("bits, size", [(10, 256), (16, 512), (64, 256)])
def test_tokenizers_of_other_bits_and_sizes_are_no_published_file(bits, size, monkeypatch):
    """10 bits were published at 512 px, 16 at 256 px: their names and widths are the same."""
    config = load_config("configs/tokenizer/bar_fsq.py")
    config.model.tokenizer.bits = bits
    config.data.image_size = size
    needed, lacking = published.shapes(config, "tokenizer")
    tensors = {n: np.broadcast_to(np.float32(0), s) for n, s in {**needed, **lacking}.items()}
    monkeypatch.setattr(published, "read_tensors", lambda path: tensors)
    assert published.read(config, "tokenizer", "own.safetensors").keys() == tensors.keys()
    config.data.image_size = 128
    with pytest.raises(InputError, match=f"data.image_size: found 128, expected {size}: own"):
        published.read(config, "tokenizer", "own.safetensors")
