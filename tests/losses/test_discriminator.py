"""Tests of bar_jax/losses/discriminator.py; values are compared in the golden cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from bar_jax.losses import discriminator as d
from bar_jax.nn.resize import resize

pytestmark = pytest.mark.slow
SIZE = 16
WHOLE = d.Crop(False, 0, 0)
TINY = {"width": 8, "depth": 2, "heads": 2, "mlp_width": 12, "patch_size": 4}


def net(**changes):
    return d.Discriminator(**TINY | {"stored_size": SIZE, "keep": (-1, 1), **changes})


@pytest.fixture(scope="module")
def params():
    images = jnp.zeros((1, SIZE, SIZE, 3))
    return meta.unbox(jax.jit(net().init)(jax.random.key(0), images))["params"]


@pytest.fixture(scope="module")
def vectors(params):
    return d.init_vectors(jax.random.key(1), params["heads"])


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1, 1, (4, SIZE, SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def batch_of():
    """An 'image' whose pixel (row, column) holds both numbers."""

    def make(side):
        rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
        return jnp.asarray(np.stack([rows, columns, rows], -1)[None], jnp.float32)

    return make


@jax.jit
def logits(params, vectors, images):
    return d.logits(net(), params["heads"], vectors, params["backbone"], images)


@pytest.mark.parametrize("side", [SIZE, 24])
def test_a_logit_for_every_patch_and_depth(params, vectors, side):
    """Positions are resized to images of another size."""
    found = logits(params, vectors, jnp.ones((2, side, side, 3)))
    assert found.shape == (2, 2 * (side // 4) ** 2) and found.dtype == jnp.float32


def test_bfloat16_gives_float32_logits(params, vectors, images):
    found = d.logits(net(dtype=jnp.bfloat16), params["heads"], vectors, params["backbone"], images)
    assert found.dtype == jnp.float32 and np.all(np.isfinite(found))


def test_initial_values(params):
    """As torch's Conv1d: uniform in +-(in * kernel)^-0.5; norms do nothing."""
    heads = params["heads"]
    for name, inputs in (("first", 8), ("second", 8 * 9), ("last", 8)):
        for values in heads[name].values():
            assert np.max(np.abs(values)) <= inputs**-0.5
        assert np.std(heads[name]["kernel"]) > 0.4 * inputs**-0.5
    np.testing.assert_array_equal(heads["second_scale"], np.ones((2, 8)))
    np.testing.assert_array_equal(heads["second_bias"], np.zeros((2, 8)))


def test_circular_convolution_matches_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, kernel, bias = (
        rng.normal(size=shape).astype(np.float32) for shape in ((2, 7, 3), (5, 3, 4), (4,))
    )
    conv = torch.nn.Conv1d(3, 4, 5, padding=2, padding_mode="circular")
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(kernel.transpose(2, 1, 0).copy()))
        conv.bias.copy_(torch.from_numpy(bias))
        expected = conv(torch.from_numpy(x.swapaxes(1, 2).copy())).numpy().swapaxes(1, 2)
    module = d.CircularConv(4, 5, jnp.float32)
    found = module.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_fresh_vectors_have_length_one(vectors):
    for pair in vectors.values():
        for vector in pair.values():
            lengths = np.sqrt(np.sum(np.square(vector), axis=tuple(range(1, vector.ndim))))
            np.testing.assert_allclose(lengths, 1, rtol=1e-5)


def test_power_iteration_finds_the_spectral_norm(params, vectors):
    @jax.jit
    def iterate(vectors):
        step = lambda _, v: d.power_iteration(params["heads"], v)
        return jax.lax.fori_loop(0, 500, step, vectors)

    norms = d.spectral_norms(params["heads"], iterate(vectors))
    for name, found in norms.items():
        kernel = np.asarray(params["heads"][name]["kernel"])
        flat = kernel.reshape(len(kernel), -1, kernel.shape[-1])
        expected = np.linalg.svd(flat, compute_uv=False)[:, 0]
        np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_one_step_and_its_gradient_match_torch():
    """Vectors after a training forward, and the gradient through W / (u^T W v)."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    conv = torch.nn.utils.spectral_norm(torch.nn.Conv1d(3, 4, 5))
    ours = lambda t: t.detach().numpy().copy()
    kernel = ours(conv.weight_orig).transpose(2, 1, 0)[None]
    params = {"second": {"kernel": jnp.asarray(kernel)}}
    v = ours(conv.weight_v).reshape(3, 5).T[None]
    vectors = {"second": {"u": jnp.asarray(ours(conv.weight_u)[None]), "v": jnp.asarray(v)}}
    conv(torch.zeros(1, 3, 5))
    factors = np.random.default_rng(0).normal(size=kernel.shape).astype(np.float32)
    torch.sum(conv.weight * torch.from_numpy(factors[0].transpose(2, 1, 0).copy())).backward()

    stepped = d.power_iteration(params, vectors)

    def total(params):
        norm = d.spectral_norms(params, stepped)["second"]
        return jnp.sum(params["second"]["kernel"] / norm[:, None, None, None] * factors)

    gradient = jax.grad(total)(params)["second"]["kernel"]
    np.testing.assert_allclose(stepped["second"]["u"][0], ours(conv.weight_u), atol=1e-6)
    np.testing.assert_allclose(stepped["second"]["v"][0].T.ravel(), ours(conv.weight_v), atol=1e-6)
    expected = ours(conv.weight_orig.grad).transpose(2, 1, 0)
    np.testing.assert_allclose(gradient[0], expected, atol=1e-4)


def test_vectors_have_no_gradient(params, vectors, images):
    total = lambda v: jnp.sum(logits(params, v, images))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.grad(total)(vectors)))


@pytest.mark.parametrize("batch, groups", [(3, 1), (8, 1), (10, 2), (24, 3)])
def test_batch_norm_local(batch, groups):
    """Consecutive examples together, each channel on its own."""
    x = np.random.default_rng(0).normal(3, 2, (batch, 5, 2)).astype(np.float32)
    scale, bias = np.asarray([2.0, 1.0]), np.asarray([0.0, -1.0])
    parts = np.split(x, groups)
    expected = [(p - p.mean((0, 1))) / np.sqrt(p.var((0, 1)) + 1e-6) * scale + bias for p in parts]
    found = d.batch_norm_local(x, jnp.asarray(scale), jnp.asarray(bias))
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-5)


def test_batch_norm_local_refuses_groups_that_do_not_divide():
    with pytest.raises(ValueError, match="a batch of 9 is not 2 groups of equal size"):
        d.batch_norm_local(jnp.zeros((9, 2, 2)), jnp.ones(2), jnp.zeros(2))


def test_prepare_keeps_the_right_size(images):
    np.testing.assert_array_equal(d.prepare(images, WHOLE, SIZE), images)


def test_prepare_enlarges(images):
    found = d.prepare(images, d.Crop(True, 0, 0), 20)
    np.testing.assert_allclose(found, resize(images, 20, "bicubic"), atol=1e-6)


def test_prepare_shrinks_or_crops(batch_of):
    """Under jit, the crop being an argument."""
    prepare = jax.jit(lambda x, crop: d.prepare(x, crop, 3))
    images = batch_of(6)
    np.testing.assert_allclose(prepare(images, WHOLE)[0, :, 0, 0], [0.5, 2.5, 4.5])
    cropped = prepare(images, d.Crop(True, 2, 3))
    np.testing.assert_array_equal(cropped[0, :, :, 0], [[2] * 3, [3] * 3, [4] * 3])
    np.testing.assert_array_equal(cropped[0, 0, :, 1], [3, 4, 5])


def test_crops_are_drawn_everywhere_and_half_of_the_time():
    draw = jax.vmap(lambda key: d.draw_crop(key, (5, 4), 3))
    crop = draw(jax.random.split(jax.random.key(0), 400))
    assert 0.4 < np.mean(crop.taken) < 0.6
    assert set(np.asarray(crop.top).tolist()) == {0, 1, 2}
    assert set(np.asarray(crop.left).tolist()) == {0, 1}


def test_as_stored():
    images = jnp.asarray([-1.2, -1.0, 100.4 / 127.5 - 1, 1.0, 1.3])
    expected = [-1, -1, 100 / 127.5 - 1, 1, 1]
    np.testing.assert_allclose(d.as_stored(images), expected, atol=1e-6)


def test_hinge_by_hand():
    real, fake = jnp.asarray([[2.0, 0.0], [-1.0, 1.0]]), jnp.asarray([[-3.0, 0.0], [1.0, -1.0]])
    np.testing.assert_allclose(d.hinge(real, fake), [0.5 * (0.5 + 0.5), 0.5 * (1 + 1)])


def test_generator_loss_by_hand():
    np.testing.assert_allclose(d.generator_loss(jnp.asarray([[1.0, 2.0], [0.0, -4.0]])), [-1.5, 2])
