"""Tests of the whole with a basis inside the tokenizer: configs/unified/digits.py, tiny.

One run of `job=pipeline` (module fixture `run`).
"""

import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.core import meta
from PIL import Image

import bar_jax
from bar_jax.config.file import load_config
from bar_jax.generators import sampling_settings
from bar_jax.generators.request import Request
from bar_jax.jobs import train_tokenizer
from bar_jax.main import main
from bar_jax.pretrained import siglip2
from bar_jax.pretrained.frozen import Networks
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.mesh import make_mesh
from bar_jax.tokenizers import make_tokenizer
from bar_jax.tokenizers.basis_fsq import BasisFSQ
from bar_jax.training import checkpoint, restore
from bar_jax.training.basis import plain_params
from bar_jax.training.optimizer import Durations
from bar_jax.training.step import jit_once, stream_key
from bar_jax.training.tokenizer import make_program

pytestmark = pytest.mark.slow
CONFIG = str(Path(__file__).resolve().parents[1] / "configs/unified/digits.py:tiny")
TOKENS, BITS = 16, 16


@pytest.fixture(scope="module", autouse=True)
def _one_device(one_device):
    """Tests here run the command."""


def command(workdir, *fields):
    return main(["", f"--config={CONFIG}", f"--workdir={workdir}", *fields])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unified") / "run"
    assert command(workdir) in (None, 0)
    assert command(workdir, "--config.job=basis") in (None, 0)
    return workdir


@pytest.fixture(scope="module")
def pipe(run):
    return bar_jax.Pipeline.load(run)


@pytest.fixture(scope="module")
def summary(run):
    return json.loads((run / "summary.json").read_text())


def test_summary_has_a_number_for_every_prefix(summary):
    assert summary["prefix_tokens"] == list(range(1, TOKENS + 1))
    for name in ("psnr", "class_accuracy", "sample_class_accuracy"):
        numbers = summary[f"prefix_{name}"]
        assert len(numbers) == TOKENS and np.isfinite(numbers).all(), name
    assert summary["tokens"] == TOKENS and summary["bit_budget"] == TOKENS * BITS


def test_all_tokens_give_the_psnr_that_reconstruct_gives(run, summary):
    assert command(run, "--config.job=reconstruct") in (None, 0)
    found = json.loads((run / "summary.json").read_text())["reconstruction_psnr"]
    assert summary["prefix_psnr"][-1] == pytest.approx(found, abs=1e-3)


def test_summary_tells_how_orthogonal_the_basis_is(run, summary):
    [matrix] = (np.load(path) for path in (run / "basis").glob("*.npy"))
    values = np.linalg.svd(np.float64(matrix), compute_uv=False)
    norm = np.linalg.norm(np.float64(matrix) @ matrix.T - np.eye(TOKENS))
    assert summary["basis_orthogonality"] == pytest.approx(norm)
    assert summary["basis_largest_singular_value"] == pytest.approx(values[0])
    assert summary["basis_smallest_singular_value"] == pytest.approx(values[-1])


@pytest.mark.parametrize("name", ["rows", "reconstructed", "generated"])
def test_pictures_are_drawn(run, name):
    picture = np.asarray(Image.open(run / "basis" / f"{name}.png"))
    assert picture.ndim == 3 and picture.std() > 0


@pytest.mark.exhaustive
def test_the_first_tokens_of_a_sample_are_those_of_the_whole(pipe, run):
    """`sample.tokens=m` is what the first m tokens of a whole sample decode to."""
    config = pipe.config.copy_and_resolve_references()
    mesh, labels = make_mesh(1, 1, 1), np.array([3, 1, 4], np.int32)
    settings, section = sampling_settings(config), config.sample
    with jax.set_mesh(mesh):
        generator = restore.load_generator(config, mesh)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            stream_key(config.seed, "sample"), np.arange(3)
        )
        scales = section.guidance_scale, section.temperature
        request = Request(labels, keys, *scales, settings=settings)
        bits = generator.module.sample(generator.params, request)
    expected = pipe.decode(np.asarray(bits)[:, :4])
    images = pipe.sample(labels, tokens=4)
    np.testing.assert_array_equal(images, expected)
    assert np.any(images != pipe.sample(labels))


def test_images_are_decoded_from_their_first_tokens(pipe, run):
    images = np.load(run / "samples.npz")["arr_0"][:2]
    bits = pipe.encode(images)
    assert bits.shape == (2, TOKENS, BITS)
    whole, part = pipe.decode(bits), pipe.decode(bits[:, :2])
    assert whole.shape == part.shape == images.shape and np.any(whole != part)


@pytest.mark.parametrize("tokens", [-1, TOKENS + 1])
def test_another_number_of_tokens_is_refused(pipe, tokens):
    with pytest.raises(InputError, match=f"sample.tokens: found {tokens}, expected 1 to 16"):
        pipe.sample([1], tokens=tokens)


def test_a_singular_basis_in_a_checkpoint_is_refused(run, pipe, monkeypatch):
    def damaged(folder, shapes, on_damaged):
        params, step = restore_params(folder, shapes, on_damaged)
        return params | {"basis": params["basis"].at[3].set(params["basis"][2])}, step

    restore_params = checkpoint.restore_params
    monkeypatch.setattr(checkpoint, "restore_params", damaged)
    with pytest.raises(InputError, match=r"the basis in .*tokenizer: found an A of 16 x 16 with r"):
        restore.load_tokenizer(pipe.config, make_mesh(1, 1, 1))


def test_another_basis_is_not_trained_on(run):
    message = "model.basis.kind: found haar, expected learned, with which"
    config = tiny(model__basis__kind="haar")
    config.workdir = str(run)
    with pytest.raises(InputError, match=message):
        train_tokenizer.run(config)


# --- how it is trained ---------------------------------------------------------------------------


def trained(config, steps=3, networks=None):
    """The state after a few steps on random images, and what the last step told."""
    networks = Networks(**networks or {})
    program = make_program(config, networks, Durations(steps, warmup=1), images=100)
    state = meta.unbox(jit_once(program.init)(jax.random.key(0)))
    params = state.params | program.pretrained | program.fixed
    state, step = state.replace(params=params), jax.jit(program.step(0))
    images = np.random.default_rng(0).integers(0, 256, (steps, 8, 16, 16, 3), np.uint8)
    for batch in images:
        state, metrics = step(state, {"image": batch}, jax.random.key(1), program.frozen)
    return state, jax.device_get(metrics)


def tiny(**fields):
    config = load_config(CONFIG)
    names = {name.replace("__", "."): value for name, value in fields.items()}
    config.update_from_flattened_dict(names)
    return config


PLAIN = {"train_tokenizer__loss__residual": 0.0, "train_tokenizer__loss__prefix": 0.0}


@pytest.mark.exhaustive
def test_training_with_the_identity_is_training_without_a_basis():
    """Parameters after three steps: of the same losses, to the rounding of their sums."""
    inside = tiny(model__basis__kind="identity", model__basis__gains=False, **PLAIN)
    without = tiny(
        model__tokenizer__kind="bar_fsq",
        model__basis__kind="raster",
        model__generator__rope="2d",
        **PLAIN,
    )
    found, expected = trained(inside)[0].params, trained(without)[0].params
    np.testing.assert_array_equal(found.pop("basis"), np.eye(TOKENS))
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
    jax.tree.map(close, found, expected)


@functools.cache
def projected():
    """Trained with all terms that a basis adds, in a narrow interval."""
    return trained(tiny(model__basis__delta=0.01, train_tokenizer__loss__residual=1.0))


@pytest.mark.exhaustive
def test_the_basis_is_projected_after_every_step():
    state, metrics = projected()
    values = np.linalg.svd(state.params["basis"], compute_uv=False)
    assert values.max() <= 1.01 + 1e-5 and values.min() >= 0.99 - 1e-5
    start = make_tokenizer(tiny()).start()
    assert np.abs(state.params["basis"] - start).max() > 1e-3
    assert {"residual", "prefix", "regularizer"} <= set(metrics)


@pytest.mark.exhaustive
def test_the_basis_has_a_learning_rate_of_its_own():
    """Nothing of it, nothing of A; of the others as much as before."""
    start = np.float32(make_tokenizer(tiny()).start())
    state, _ = trained(tiny(train_tokenizer__basis_learning_rate=0.0), steps=2)
    np.testing.assert_allclose(state.params["basis"], start, atol=1e-6)
    assert np.any(state.params["basis_gains"])


@pytest.mark.exhaustive
def test_a_fixed_basis_stays():
    config = tiny(model__basis__kind="haar")
    state, metrics = trained(config)
    expected = make_tokenizer(config).start().astype(np.float32)
    np.testing.assert_array_equal(state.params["basis"], expected)
    assert "regularizer" not in metrics and np.any(state.params["basis_gains"])


def test_the_loss_is_the_sum_of_its_terms():
    config, metrics = tiny(train_tokenizer__loss__residual=1.0), projected()[1]
    weights = {**config.train_tokenizer.loss, "regularizer": config.model.basis.regularizer}
    total = sum(weights[name] * metrics[name] for name in weights if name in metrics)
    assert metrics["loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.exhaustive
def test_features_of_siglip2_are_aligned_with():
    """Whose own weights have no basis."""
    config = tiny(train_tokenizer__loss__alignment=0.7, **PLAIN)
    config.model.tokenizer.encoder.kind = "siglip2"
    config.model.tokenizer.decoder.predictor_width = 8
    own = meta.unbox(restore.init_tokenizer(make_tokenizer(config), jax.random.key(2)))
    encoder = {part: own[part] for part in siglip2.ENCODER}
    state, metrics = trained(config, steps=1, networks={"siglip2": encoder})
    assert metrics["alignment"] > 0
    fixed = state.params["patch_embedding"]["kernel"]
    np.testing.assert_array_equal(fixed, encoder["patch_embedding"]["kernel"])


# --- how it starts -------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_pca_is_that_of_the_latents_of_the_starting_encoder(finished_quickstart, tmp_path):
    """From a plain tokenizer (`init_from`): its encoder's latents, by numpy."""
    config = tiny(model__basis__kind="pca", init_from=str(finished_quickstart.folder))
    config.workdir = str(tmp_path / "pca")
    train_tokenizer.run(config)
    mesh = make_mesh(1, 1, 1)
    found = restore.load_tokenizer(config, mesh)
    assert isinstance(found.module, BasisFSQ)

    start = plain_params(config, mesh)
    images = bar_jax.data.open_images(config)
    batches = bar_jax.data.eval_batches(images, image_size=16, crop="center", batch_size=64)
    z = np.concatenate(
        [
            found.module.apply(
                {"params": found.params | start},
                bar_jax.data.to_float(batch["image"]),
                method=found.module.project,
            )[batch["mask"]]
            for batch in batches
        ]
    ).astype(np.float64)
    moment = np.einsum("bnd,bmd->nm", z, z)
    values, vectors = np.linalg.eigh(moment)
    # Rows are eigenvectors in order, up to sign: the moment is diagonal in them, falling.
    A = np.float64(found.params["basis"])
    turned = A @ moment @ A.T
    np.testing.assert_allclose(np.diag(turned), values[::-1], rtol=1e-3, atol=1e-4 * values[-1])
    off = turned - np.diag(np.diag(turned))
    assert np.abs(off).max() < 1e-4 * values[-1]


def test_a_plain_tokenizer_that_does_not_fit_is_told(run, tmp_path):
    shutil.copytree(run / "tokenizer", tmp_path / "run" / "tokenizer")
    shutil.copy(run / "config.json", tmp_path / "run")
    stored = json.loads((tmp_path / "run/config.json").read_text())
    stored["model"]["tokenizer"]["kind"] = "bar_fsq"
    (tmp_path / "run/config.json").write_text(json.dumps(stored))
    config = tiny(init_from=str(tmp_path / "run"))
    config.workdir = str(tmp_path / "other")
    with pytest.raises(InputError):
        train_tokenizer.run(config)
