"""Tests of bar_jax/jobs/basis.py: the tiny pipeline on digits' pixels, once for each host."""

import contextlib
import functools
import io
import json
import logging
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bar_jax
from bar_jax import main as command
from bar_jax.bases.energy import pca_energy, prefix_energy
from bar_jax.bases.matrices import principal_components
from bar_jax.config.file import load_config
from bar_jax.data import open_cache
from bar_jax.generators import make_generator
from bar_jax.inspection import basis, plan
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.mesh import make_mesh
from bar_jax.tokenizers import make_tokenizer
from bar_jax.training import basis as basis_training
from bar_jax.training.step import init_state

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
# Of each host a config with a learned basis: 16 tokens of 4 x 4 px.
HOSTS = {"xar": "digits", "mar": "mar_b", "causal": "digits_causal"}
PICTURES = ("rows.png", "prefixes.png", "energy.png", "training.png")


@pytest.fixture(scope="module", autouse=True)
def _one_device(one_device):
    """Tests here run the command."""


def configured(host, **changes):
    config = load_config(f"{ROOT}/configs/basis/{HOSTS[host]}.py:tiny")
    config.model.tokenizer.kind = "pixels"
    config.sample.update(dict(images_per_class=1, guidance_scale=2.0, steps=2))
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def run(config, folder, job="pipeline"):
    """Runs a job on a copy of the config; returns its summary."""
    config = config.copy_and_resolve_references()
    config.update(dict(job=job, workdir=str(folder)))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert command.run(config) == 0
    return json.loads(printed.getvalue())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Host -> its finished pipeline. Nothing may be written there."""

    @functools.cache
    def of(host):
        folder, config = tmp_path_factory.mktemp(host) / "run", configured(host)
        return SimpleNamespace(config=config, folder=folder, summary=run(config, folder))

    return of


@pytest.fixture(
    scope="module",
    params=["xar", *(pytest.param(h, marks=pytest.mark.exhaustive) for h in ("mar", "causal"))],
)
def finished(request, runs):
    return runs(request.param)


# --- the pipeline --------------------------------------------------------------------------------


def test_configs_learn_a_basis_by_the_residual(finished):
    section = finished.config.model.basis
    assert (section.kind, section.objective) == ("learned", "residual")


def test_samples_are_images(finished):
    with np.load(finished.folder / "samples.npz") as stored:
        assert (stored["arr_0"].shape, stored["arr_0"].dtype) == ((10, 16, 16, 3), np.uint8)
        assert len(np.unique(stored["arr_0"])) > 1


def test_the_basis_is_kept_and_drawn(finished):
    """At the evaluation of the last step."""
    folder = finished.folder / "basis"
    assert {path.name for path in folder.iterdir()} == {"00000002.npy", *PICTURES}
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in PICTURES)
    matrix = np.load(folder / "00000002.npy")
    assert (matrix.shape, matrix.dtype) == ((16, 16), np.float32)


def test_summary_has_the_basis_and_its_losses(finished):
    names = (*basis.NUMBERS, "generator_loss", "generator_residual_loss")
    assert all(math.isfinite(finished.summary[name]) for name in names)
    assert 0 < finished.summary["basis_energy"] <= 1
    assert not [name for name in finished.summary if "bits" in name]


def test_numbers_are_those_of_the_kept_matrix(finished):
    matrix = np.load(finished.folder / "basis/00000002.npy").astype(np.float64)
    values = np.linalg.svd(matrix, compute_uv=False)
    for name, value in (("largest", values[0]), ("smallest", values[-1])):
        found = finished.summary[f"basis_{name}_singular_value"]
        assert found == pytest.approx(value, rel=1e-5)
    assert finished.summary["basis_orthogonality"] == pytest.approx(
        np.linalg.norm(matrix @ matrix.T - np.eye(16)), rel=1e-4
    )


def test_training_has_moved_the_basis(finished):
    """From the identity in the host's order, by a warm-up step of nothing and one more."""
    start = np.eye(16)[make_generator(finished.config).native_order]
    moved = np.abs(np.load(finished.folder / "basis/00000002.npy") - start)
    assert 0 < np.max(moved) < 0.1


def test_a_finished_run_stays_as_it_is(finished, tmp_path, caplog):
    folder = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    before = {p: p.read_bytes() for p in folder.glob("basis/*")}
    with caplog.at_level(logging.INFO, "bar_jax"):
        run(finished.config, folder)
    assert "train_generator: finished at step 2, nothing to do" in caplog.text
    assert "samples.npz is finished, nothing to do" in caplog.text
    assert {p: p.read_bytes() for p in folder.glob("basis/*")} == before


def test_an_image_does_not_depend_on_its_batch(finished):
    """Three of the ten, from Python; a level more or less where sums are in another order."""
    pipe = bar_jax.Pipeline.load(finished.folder)
    with np.load(finished.folder / "samples.npz") as stored:
        expected = stored["arr_0"][:3].astype(int)
    drawn = pipe.sample(labels=[0, 1, 2], seed=0).astype(int)
    assert np.max(np.abs(drawn - expected)) <= 1


def test_real_numbers_are_not_kept(xar):
    """There is no sampler that fills in the rest."""
    pipe, images = bar_jax.Pipeline.load(xar.folder), np.zeros((1, 16, 16, 3), np.uint8)
    with pytest.raises(InputError, match=r"^keep: found some, of pixels, expected none"):
        pipe.sample(labels=[0], images=images, keep=np.ones((4, 4), bool))


def test_steps_are_of_real_numbers_and_an_unmasking_schedule_is_of_bits(xar):
    pipe = bar_jax.Pipeline.load(xar.folder)
    few, more = (pipe.sample(labels=[0], steps=steps) for steps in (1, 2))
    assert np.any(few != more)
    np.testing.assert_array_equal(more, pipe.sample(labels=[0]))  # 2 are those of the config
    with pytest.raises(InputError, match=r"^unmasking_schedule: found .*, expected None: it is fo"):
        pipe.sample(labels=[0], unmasking_schedule=(4, 4))
    with pytest.raises(InputError, match=r"^sample.steps: found 0"):
        pipe.sample(labels=[0], steps=0)


# --- the job -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def xar(runs):
    return runs("xar")


def test_the_job_draws_anew_what_training_drew(xar, tmp_path):
    folder = Path(shutil.copytree(xar.folder, tmp_path / "run"))
    before = np.load(folder / "basis/00000002.npy")
    summary = json.loads((folder / "summary.json").read_text())
    shutil.rmtree(folder / "basis")
    found = run(xar.config, folder, "basis")
    assert {path.name for path in (folder / "basis").iterdir()} == {"00000002.npy", *PICTURES}
    np.testing.assert_array_equal(np.load(folder / "basis/00000002.npy"), before)
    assert {n: found[n] for n in basis.NUMBERS} == {n: summary[n] for n in basis.NUMBERS}


def test_an_order_of_each_image_has_nothing_to_draw(tmp_path):
    config = configured("causal", model__basis__kind="random")
    told = r"^model.basis.kind: found 'random' of pixels, expected one basis for all images"
    with pytest.raises(InputError, match=told):
        run(config, tmp_path, "basis")


def test_history_is_of_every_matrix_that_was_kept(tmp_path):
    np.save(tmp_path / "00000020.npy", np.diag([1.0, 3.0]))
    np.save(tmp_path / "00000005.npy", np.eye(2))
    (first, one, zero), (second, values, norm) = basis.history(tmp_path)
    assert (first, second) == (5, 20)
    np.testing.assert_allclose([one, values], [[1, 1], [3, 1]])
    assert (zero, norm) == (0, pytest.approx(8))


def test_second_moment_of_cached_tokens(xar):
    """Over images and channels, by numpy; 176 images are not a whole number of batches."""
    cache = open_cache(xar.folder / "cache/validation")
    x = cache.read(np.arange(len(cache)))["tokens"] / 127.5 - 1
    expected = np.einsum("bnd,bmd->nm", x, x) / (len(cache) * x.shape[2])
    generator, codec = make_generator(xar.config), make_tokenizer(xar.config)
    found = basis_training.token_moment(xar.config, generator, codec, cache)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_measures_of_the_principal_components():
    """Those of the training images: all of the energy that they can have."""
    rng = np.random.default_rng(0)
    train = np.cov(rng.normal(size=(4, 50)) * np.array([[3.0], [2.0], [1.0], [0.5]]))
    validation = np.diag([4.0, 3.0, 2.0, 1.0])
    best = pca_energy(train, validation, 4)
    measure = lambda A: basis.numbers(A, prefix_energy(A, validation), best)
    assert measure(principal_components(train))["basis_energy_of_pca"] == pytest.approx(1)
    numbers = measure(2 * np.eye(4)[[3, 2, 1, 0]])
    assert numbers["basis_energy"] == pytest.approx((0.1 + 0.3 + 0.6 + 1) / 4)
    assert numbers["basis_orthogonality"] == pytest.approx(np.sqrt(4 * 3**2))
    assert numbers["basis_largest_singular_value"] == pytest.approx(2)
    assert numbers["basis_smallest_singular_value"] == pytest.approx(2)


# --- what is trained -----------------------------------------------------------------------------


def fresh(config):
    """A fresh state with the basis that training starts from, and the step that it is taken by."""
    generator, mesh = make_generator(config), make_mesh(1, 1, 1)
    program = plan.generator_program(config, mesh, generator)
    state = init_state(program.init, jax.random.key(0), mesh)[0]()
    return state.replace(params=state.params | program.pretrained | program.fixed), program.step(0)


def trained(config):
    """The state before and after two steps; the first, of the warm-up, moves nothing."""
    state, step = fresh(config)
    tokens = np.random.default_rng(0).integers(0, 256, (16, 16, 48), np.uint8)
    batch = {"tokens": jnp.asarray(tokens), "label": jnp.arange(16, dtype=jnp.int32) % 10}
    after, step = state, jax.jit(step)
    for _ in range(2):
        after, _ = step(after, batch, jax.random.key(1), {})
    return state, after


def far(**changes):
    """A learning rate so large that one step leaves any bounds."""
    return configured(
        "xar",
        train_generator__optimizer__learning_rate=0.5,
        train_generator__optimizer__end_learning_rate=0.5,
        **changes,
    )


@pytest.mark.parametrize(
    "projection, delta, low, high",
    [
        ("soft", 0.5, 0.5, 1.5),
        pytest.param("soft", 0.1, 0.9, 1.1, marks=pytest.mark.exhaustive),
        pytest.param("hard", 0.5, 1.0, 1.0, marks=pytest.mark.exhaustive),
    ],
)
def test_singular_values_stay_within_bounds(projection, delta, low, high):
    config = far(model__basis__projection=projection, model__basis__delta=delta)
    before, after = trained(config)
    assert np.max(np.abs(after.params["basis"] - before.params["basis"])) > 0.05
    values = np.linalg.svd(np.asarray(after.params["basis"], np.float64), compute_uv=False)
    assert np.all(values > low - 1e-4) and np.all(values < high + 1e-4)
    assert values[0] == pytest.approx(high, abs=1e-4)  # the update was larger


@pytest.mark.exhaustive
def test_without_projection_they_leave_any_bounds():
    _, after = trained(far(model__basis__projection="none"))
    assert np.linalg.svd(np.asarray(after.params["basis"]), compute_uv=False)[0] > 2


def test_a_learned_basis_starts_as_the_hosts_order():
    params = fresh(configured("xar"))[0].params
    blocks = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    np.testing.assert_array_equal(params["basis"], np.eye(16)[blocks])


def test_a_fixed_basis_is_not_trained():
    """Bit for bit as it was; the optimiser keeps nothing of it."""
    config = far(model__basis__kind="random_orthogonal")
    before, after = trained(config)
    np.testing.assert_array_equal(after.params["basis"], before.params["basis"])
    np.testing.assert_allclose(
        after.params["basis"] @ after.params["basis"].T, np.eye(16), atol=1e-6
    )
    kept = {path[-1] for path, _ in jax.tree_util.tree_leaves_with_path(after.opt_state)}
    assert jax.tree_util.DictKey("basis") not in kept
    changed = (
        after.params["host"]["in_proj"]["kernel"] != before.params["host"]["in_proj"]["kernel"]
    )
    assert np.any(changed)


@pytest.mark.parametrize("change", ["kind", "init"])
def test_pca_is_made_of_the_training_tokens(change):
    """Whether the basis is that, or is learned from there."""
    config = configured("xar", **{f"model__basis__{change}": "pca"})
    factor = np.random.default_rng(0).normal(size=(16, 16))
    mesh, generator = make_mesh(1, 1, 1), make_generator(config)
    start = basis_training.training(config, mesh, generator, factor @ factor.T)
    start = (start.fixed if change == "kind" else start.pretrained)["basis"]
    _, vectors = np.linalg.eigh(factor @ factor.T)
    expected = np.abs(vectors.T[::-1])  # rows are as good with the other sign
    np.testing.assert_allclose(np.abs(start), expected, atol=1e-5)


def test_orders_need_nothing_of_the_trainer():
    config = configured("xar", model__basis__kind="cells")
    found = basis_training.training(config, make_mesh(1, 1, 1), make_generator(config))
    assert found == basis_training.BasisTraining()
