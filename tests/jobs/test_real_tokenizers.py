"""Jobs, and `Pipeline`, with tokenizers of real-valued tokens: kl_vae and pixels."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import bar_jax
from bar_jax import main as command
from bar_jax.config import default_config
from bar_jax.config.presets import tiny
from bar_jax.data import open_cache
from bar_jax.jobs import benchmark, describe, pipeline
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.mesh import make_mesh
from bar_jax.tokenizers import make_tokenizer
from bar_jax.training import restore

pytestmark = pytest.mark.slow
FILE = Path(__file__).parents[1] / "golden/basis_hosts/kl16_tiny.safetensors"


@pytest.fixture(scope="module", autouse=True)
def _one_device(one_device):
    """Tests here run the command."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five images of two classes to train, two to validate, 32 px."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, counts in (("train", (3, 2)), ("val", (1, 1))):
        for label, count in enumerate(counts):
            (root / split / f"class{label}").mkdir(parents=True)
            for i in range(count):
                low = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
                low.resize((32, 32), Image.BICUBIC).save(root / split / f"class{label}/{i}.png")
    return root


def configured(folder, kind):
    """kl_vae: that of `kl16_tiny.safetensors`, 2 x 2 tokens; pixels: 8 x 8 of them."""
    config = tiny(default_config())
    config.data.update(dict(source="folder", path=str(folder), num_classes=2, image_size=32))
    config.data.update(dict(train_split="train", validation_split="val"))
    config.model.tokenizer.kind = kind
    config.model.basis.kind = "raster"
    config.model.head.kind = "diffusion"
    if kind == "kl_vae":
        config.model.tokenizer.patch_size = 16
        sizes = dict(width=32, multipliers=(1, 1, 2, 1, 1), blocks=1, attention=16)
        config.model.tokenizer.kl.update(sizes)
    config.encode.update(dict(batch_size=4, shards=1))
    return config


def run(config, workdir, job, **changes):
    """Runs a job on a copy of the config; returns its summary."""
    config = config.copy_and_resolve_references()
    config.update(dict(job=job, workdir=str(workdir)))
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert command.run(config) == 0
    return json.loads(printed.getvalue())


@pytest.fixture(scope="module")
def imported(folder, tmp_path_factory):
    """A workdir with the published tokenizer in it; nothing may be written there."""
    workdir = tmp_path_factory.mktemp("kl_vae") / "run"
    config = configured(folder, "kl_vae")
    run(config, workdir, "import_weights", published__tokenizer=str(FILE))
    return workdir


def from_python(config, workdir):
    """A `Pipeline` without a generator."""
    config = config.copy_and_resolve_references()
    config.workdir, mesh = str(workdir), make_mesh(1, 1, 1)
    return bar_jax.Pipeline(config, mesh, restore.load_tokenizer(config, mesh), None)


def validation_images(folder):
    return np.stack([np.asarray(Image.open(f)) for f in sorted(folder.glob("val/*/*.png"))])


# --- kl_vae --------------------------------------------------------------------------------------


def test_what_is_imported_is_exported(folder, imported, tmp_path):
    workdir = shutil.copytree(imported, tmp_path / "run")
    summary = run(configured(folder, "kl_vae"), workdir, "export_weights")
    found, given = load_file(summary["tokenizer_exported_to"]), load_file(FILE)
    assert found.keys() == given.keys()
    assert [n for n, tensor in given.items() if not np.array_equal(found[n], tensor)] == []


def test_moments_are_encoded(folder, imported, tmp_path):
    """Means times the scale are what `Pipeline.encode` gives of the same images."""
    config = configured(folder, "kl_vae")
    workdir = shutil.copytree(imported, tmp_path / "run")
    summary = run(config, workdir, "encode")
    assert [summary[f"cached_{split}_images"] for split in ("train", "validation")] == [5, 2]
    cache = open_cache(workdir / "cache/validation", dtype="float32", width=32, grid=(2, 2))
    means = cache.read([0, 1])["tokens"][..., :16]
    pipe = from_python(config, imported)
    x = pipe.encode(validation_images(folder))
    assert (x.shape, x.dtype) == ((2, 4, 16), np.float32)
    np.testing.assert_allclose(x, means * 0.2325, rtol=1e-4, atol=1e-5)


def test_mirror_images_have_moments_of_their_own(folder, imported, tmp_path):
    config = configured(folder, "kl_vae")
    workdir = shutil.copytree(imported, tmp_path / "run")
    run(config, workdir, "encode")
    first = sorted((folder / "train/class0").iterdir())[0]
    mirrored = np.asarray(Image.open(first))[None, :, ::-1]
    x = from_python(config, imported).encode(mirrored)
    stored = open_cache(workdir / "cache/train").read([0])["tokens_mirrored"]
    np.testing.assert_allclose(x, stored[..., :16] * 0.2325, rtol=1e-4, atol=1e-5)


def test_reconstruct_decodes_the_mean(folder, imported, tmp_path):
    """Its error is that of what `Pipeline` encodes and decodes, and there are no bits."""
    config = configured(folder, "kl_vae")
    workdir = shutil.copytree(imported, tmp_path / "run")
    summary = run(config, workdir, "reconstruct")
    assert summary["reconstruction_of"] == "posterior mean"
    assert not [name for name in summary if "bit" in name]
    assert (workdir / "reconstructions.png").exists()
    pipe, images = from_python(config, imported), validation_images(folder)
    decoded = pipe.decode(pipe.encode(images))
    error = np.square(images / 255 - decoded / 255).mean(axis=(1, 2, 3))  # half a level off
    assert summary["reconstruction_psnr"] == pytest.approx(-10 * np.log10(error).mean(), abs=0.1)


def test_wrong_tokens_are_refused(folder, imported):
    pipe = from_python(configured(folder, "kl_vae"), imported)
    for tokens in (np.zeros((1, 4, 32)), np.full((1, 4, 16), np.nan), np.full((1, 4, 16), "x")):
        with pytest.raises(InputError, match=r"expected numbers \[B, 4, 16\]"):
            pipe.decode(tokens)


def test_a_published_file_of_another_size(folder, tmp_path):
    config = configured(folder, "kl_vae")
    config.model.tokenizer.kl.blocks = 2
    config.published.tokenizer, config.workdir = str(FILE), str(tmp_path)
    config.job = "import_weights"
    with pytest.raises(InputError, match=r"90 missing:\n    decoder.up.{0..4}.block.2.conv1.bias"):
        command.run(config)


def test_the_full_size_has_66_46_million_parameters():
    config = default_config()
    config.model.tokenizer.kind = "kl_vae"
    shapes = restore.param_shapes(
        lambda key: restore.init_tokenizer(make_tokenizer(config), key), make_mesh(1, 1, 1)
    )
    told = describe.tokenizer_parameters(config, shapes)
    assert (told["tokenizer_total"], told["tokenizer_trainable"]) == (66_456_019, 0)
    assert told["tokenizer_encoding"] + told["tokenizer_decoding"] == 66_456_019
    assert describe.tokens(config) == {"numbers_per_token": 16, "tokens": 256}
    assert describe.tokenizer_bytes(config, shapes, make_mesh(1, 1, 1)) == {
        "tokenizer": 4 * 66_456_019
    }


# --- pixels --------------------------------------------------------------------------------------


def test_pixels_are_cached_as_they_are(folder, tmp_path):
    config = configured(folder, "pixels")
    run(config, tmp_path, "encode")
    cache = open_cache(tmp_path / "cache/validation", dtype="uint8", width=48, grid=(8, 8))
    corners = validation_images(folder)[:, :4, :4].reshape(2, 48)
    np.testing.assert_array_equal(cache.read([0, 1])["tokens"][:, 0], corners)


def test_pixels_are_reconstructed_without_a_tokenizer(folder, tmp_path):
    summary = run(configured(folder, "pixels"), tmp_path, "reconstruct")
    assert summary["reconstruction_psnr"] == pytest.approx(100, abs=1e-3)  # 10 log10(1 / 1e-10)
    assert summary["reconstruction_l2"] == pytest.approx(0, abs=1e-12)
    assert "reconstruction_of" not in summary


def test_pixels_have_no_published_weights(folder, tmp_path):
    config = configured(folder, "pixels")
    with pytest.raises(InputError, match="kind: found 'pixels', expected 'bar_fsq' . 'kl_vae'"):
        config.update(dict(job="import_weights", workdir=str(tmp_path)))
        config.published.tokenizer = str(FILE)
        command.run(config)


def test_pixels_have_no_parameters(folder):
    config = configured(folder, "pixels")
    told = describe.tokenizer_parameters(config, {})
    assert set(told.pop("tokenizer").values()) == set() and set(told.values()) == {0}


# --- both ----------------------------------------------------------------------------------------


class Stop(Exception):
    """In the place of a stage."""


def stop(config):
    raise Stop


@pytest.mark.parametrize("kind", ["pixels", "kl_vae"])
def test_a_pipeline_begins_with_encoding(folder, imported, monkeypatch, kind):
    config = configured(folder, kind)
    config.workdir = str(imported)  # pixels do not look there
    monkeypatch.setattr(pipeline.encode, "run", stop)
    with pytest.raises(Stop):
        pipeline.run(config)


def test_a_pipeline_of_kl_vae_needs_its_weights(folder, tmp_path):
    config = configured(folder, "kl_vae")
    config.workdir = str(tmp_path)
    with pytest.raises(InputError, match="no trained model, expected job=import_weights to have"):
        pipeline.run(config)


def test_imported_weights_do_not_end_a_pipeline(folder, imported, monkeypatch):
    """Those of bar_fsq do: it would train them."""
    monkeypatch.setattr(pipeline.encode, "run", stop)
    config = configured(folder, "kl_vae")
    config.update(dict(job="pipeline", workdir=str(imported)))
    config.sample.batch_size = 16
    with pytest.raises(Stop):
        command.run(config)


@pytest.mark.parametrize("kind", ["pixels", pytest.param("kl_vae", marks=pytest.mark.exhaustive)])
def test_benchmark_of_the_tokenizer(kind):
    config = tiny(default_config())
    config.model.tokenizer.update(dict(kind=kind, patch_size=2))
    config.model.head.kind = "diffusion"
    config.model.tokenizer.kl.multipliers = (1, 1)
    config.encode.batch_size = 4
    config.benchmark.update(dict(parts=("tokenizer",), repeats=1))
    told = benchmark.run(config)["tokenizer"]
    for way in ("encode", "decode"):
        [seconds] = told[way]["seconds"]
        assert told[way]["images_per_second"] == pytest.approx(4 / seconds, rel=1e-3)
        assert (told[way]["flops_per_image"] > 0) == (kind == "kl_vae")
