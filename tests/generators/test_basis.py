"""Tests of bar_jax/generators/basis.py, with a host of which all is known in closed form."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.bases import Basis
from bar_jax.generators.basis import BasisGenerator
from bar_jax.generators.prediction import Prediction
from bar_jax.generators.request import Request
from bar_jax.generators.xar import XAR

GRID, N, CHANNELS, CLASSES, DRAWS = (2, 4), 8, 3, 4, 2
VARIATIONAL = 0.3


class Host(nn.Module):
    """Predicts yhat = gain (0.8 y + 0.6 eps) + a number of the class and one of the place.

    Its loss is sum (yhat - y)^2 + VARIATIONAL * sum y^2, over DRAWS draws of noise, divided by N.
    """

    length: int = N
    channels: int = CHANNELS
    num_classes: int = CLASSES
    takes_order: bool = False
    variational: bool = False

    def setup(self):
        self.gain = self.param("gain", lambda key: jnp.float32(0.9))
        self.of_class = self.param("of_class", lambda key: jnp.zeros(self.num_classes + 1))
        self.of_place = self.param("of_place", lambda key: jnp.zeros(self.length))

    @nn.nowrap
    def draw(self, keys):
        """Noise [R, B, N', d], ratios of signal to noise [R, B]."""
        shape = (DRAWS, self.length, self.channels)
        noise = jax.vmap(lambda key: jax.random.normal(key, shape), out_axes=1)(keys)
        return noise, jnp.full((DRAWS, keys.shape[0]), 1.5)

    def predict(self, y, labels, draws, order=None):
        noise, snr = draws
        clean = (
            self.gain * (0.8 * y[None] + 0.6 * noise) + self.of_class[labels][None, :, None, None]
        )
        if order is not None:
            clean += self.of_place[order][None, :, :, None]
        variational = VARIATIONAL * jnp.sum(y**2, axis=(1, 2))
        loss = jnp.sum((clean - y[None]) ** 2, axis=(0, 2, 3)) + variational
        weight = jnp.full(labels.shape, float(self.length))
        return Prediction(loss, weight, variational if self.variational else None, clean, snr)

    @nn.nowrap
    def sample(self, params, request, order=None):
        """The place that the host was told of in every channel, or -1."""
        shape = (request.labels.shape[0], self.length, self.channels)
        return jnp.full(shape, -1.0) if order is None else jnp.broadcast_to(order[..., None], shape)


PARAMS = {
    "gain": jnp.float32(0.9),
    "of_class": jnp.array([0.1, -0.2, 0.3, 0.7, -1.0]),
    "of_place": jnp.zeros(N),
}


def make(kind, host=None, **changes):
    fields = {name: changes.pop(name) for name in ("init", "rows", "inverse") if name in changes}
    return BasisGenerator(host or Host(), Basis(kind, **fields), GRID, **changes)


@functools.cache
def loss_of(generator, deterministic=True):
    @jax.jit
    def run(params, tokens, labels, draws, share, counted):
        return generator.apply(
            {"params": params}, tokens, labels, draws, share, deterministic, counted,
            method=generator.loss,
        )  # fmt: skip

    return run


def loss(generator, params, x, draws, labels=(1, 2), share=0.0, deterministic=True, counted=None):
    """Sums, as numbers."""
    run = loss_of(generator, deterministic)
    found = run(params, jnp.float32(x), jnp.array(labels), draws, share, counted)
    return {name: (float(total), float(weight)) for name, (total, weight) in found.items()}


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(2, N, CHANNELS))


def near_orthogonal(seed=0, size=N):
    rng = np.random.default_rng(seed)
    return np.linalg.qr(rng.normal(size=(size, size)))[0] + 0.1 * rng.normal(size=(size, size))


def draws_of(generator, key, batch=2):
    return generator.draw(jax.random.split(key, batch))


def by_hand(A, x, noise, *, labels=(1, 2), snr=1.5, objective="bar", weight=1.0, variational=False):
    """The mean loss of `Host` behind a learned A, in float64 loops; its parts too."""
    gain, of_class = 0.9, np.asarray(PARAMS["of_class"], np.float64)
    noise = np.asarray(noise, np.float64)
    rows, tokens = A.shape
    regularizer = np.mean((A @ A.T - np.eye(rows)) ** 2)
    host, residual, rest = 0.0, 0.0, 0.0
    for b, label in enumerate(labels):
        y = A @ x[b]
        rest += VARIATIONAL * np.sum(y**2) / rows / len(labels)
        for r in range(DRAWS):
            clean = gain * (0.8 * y + 0.6 * noise[r, b]) + of_class[label]
            host += np.sum((clean - y) ** 2) / rows / len(labels)
            for k in range(1, rows + 1):
                error = x[b] - sum(np.outer(A[i], clean[i]) for i in range(k))
                share = rows * tokens * CHANNELS * DRAWS * len(labels)
                residual += snr * np.sum(error**2) / share
    host += rest
    main = host if objective == "bar" else residual + (rest if variational else 0.0)
    return {
        "loss": main + weight * regularizer,
        "host_loss": host,
        "residual_loss": residual,
        "regularizer": regularizer,
    }


# --- the sequence --------------------------------------------------------------------------------


def test_identity_keeps_the_hosts_own_order():
    """xAR's two cells of 2 x 2, whether tokens are moved or multiplied."""
    host = XAR(CHANNELS, GRID, 2, CLASSES, width=8, depth=1, heads=2)
    places = [0, 1, 4, 5, 2, 3, 6, 7]
    y = jnp.tile(jnp.arange(N, dtype=jnp.float32)[None, :, None], (1, 1, CHANNELS))
    expected = np.argsort(places)
    moved = BasisGenerator(host, Basis("identity"), GRID)
    np.testing.assert_array_equal(moved.tokens({}, y)[0, :, 0], expected)
    learned = BasisGenerator(host, Basis("learned"), GRID)
    start = learned.basis.matrix(learned.grid, learned.native_order)
    np.testing.assert_array_equal(start, np.eye(N)[places])
    found = learned.tokens({"basis": jnp.float32(start)}, y)
    np.testing.assert_allclose(found[0, :, 0], expected, atol=1e-6)


def test_identity_of_a_host_without_an_order_is_raster():
    np.testing.assert_array_equal(make("identity").native_order, np.arange(N))


def test_a_learned_matrix_starts_in_the_hosts_order(key):
    host = XAR(CHANNELS, GRID, 2, CLASSES, width=8, depth=1, heads=2)
    generator = BasisGenerator(host, Basis("learned"), GRID)
    arguments = jnp.zeros((1, N, CHANNELS)), jnp.zeros(1, jnp.int32), key[None]
    init = functools.partial(generator.init, method=generator.initialize)
    matrix = jax.jit(init)(key, *arguments)["params"]["basis"]
    np.testing.assert_array_equal(matrix, np.eye(N)[[0, 1, 4, 5, 2, 3, 6, 7]])


SQUARE = ("frequency", "random_orthogonal", "low_pass")


@pytest.mark.parametrize("kind", ["raster", "cells", "subsample", *SQUARE])
def test_the_host_models_a_times_x_and_the_way_back_is_its_inverse(key, x, kind):
    generator = make(kind)
    A = generator.basis.matrix(GRID, generator.native_order)
    matrix = {"basis": jnp.float32(A)} if generator.basis.has_matrix else {}
    draws = draws_of(generator, key)
    total, weight = loss(generator, {"host": PARAMS} | matrix, x, draws)["loss"]
    assert total / weight == pytest.approx(by_hand(A, x, draws.host[0])["host_loss"], rel=1e-4)
    np.testing.assert_allclose(generator.tokens(matrix, jnp.float32(A @ x)), x, atol=2e-5)


def test_more_rows_than_tokens_are_inverted():
    generator = BasisGenerator(Host(length=21), Basis("scales"), (4, 4))
    A = generator.basis.matrix((4, 4), np.arange(16))
    x = np.random.default_rng(0).normal(size=(2, 16, CHANNELS))
    found = generator.tokens({"basis": jnp.float32(A)}, jnp.float32(A @ x))
    np.testing.assert_allclose(found, x, atol=2e-5)


def test_fewer_rows_than_tokens_give_the_best_linear_reconstruction(x):
    """Least squares of the tokens on the rows, which need not be orthonormal."""
    generator, A = make("compact", Host(length=3), rows=3), near_orthogonal()[:3]
    found = generator.tokens({"basis": jnp.float32(A)}, jnp.float32(A @ x))
    expected = np.stack([A.T @ np.linalg.lstsq(A.T, image, rcond=None)[0] for image in x])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_transpose_is_another_way_back(x):
    A = near_orthogonal()
    generator = make("learned", inverse="transpose")
    found = generator.tokens({"basis": jnp.float32(A)}, jnp.float32(x))
    np.testing.assert_allclose(found, A.T @ x, atol=1e-5)


def test_patches_are_laid_out_by_channel_row_and_column(key):
    """2 x 4 patches of 2 x 2 tokens with 2 numbers, in a learned basis and back."""
    generator = BasisGenerator(Host(channels=8), Basis("learned"), (4, 8), 2)
    assert generator.grid == GRID and generator.token_shape == (32, 2)
    tokens = np.random.default_rng(0).normal(size=(2, 4, 8, 2))
    x = np.empty((2, N, 8))
    for i in range(2):
        for j in range(4):
            for c in range(2):
                for p in range(2):
                    for q in range(2):
                        here = tokens[:, 2 * i + p, 2 * j + q, c]
                        x[:, 4 * i + j, 4 * c + 2 * p + q] = here
    A, flat = near_orthogonal(), tokens.reshape(2, 32, 2)
    found = generator.tokens({"basis": jnp.float32(A)}, jnp.float32(A @ x))
    np.testing.assert_allclose(found, flat, atol=2e-5)
    params = {"host": PARAMS, "basis": jnp.float32(A)}
    draws = draws_of(generator, key)
    total, weight = loss(generator, params, flat, draws)["host_loss"]
    # By hand: CHANNELS enters the residual alone.
    expected = by_hand(A, x, draws.host[0])["host_loss"]
    assert total / weight == pytest.approx(expected, rel=1e-4)


# --- orders --------------------------------------------------------------------------------------


def test_random_orders_are_told_to_the_host(key, x):
    """Example 0 has a random order, example 1 raster: tokens and their places move together."""
    generator = make("random", Host(takes_order=True))
    of_place = np.random.default_rng(1).normal(size=N)
    params = {"host": PARAMS | {"of_place": jnp.float32(of_place)}}
    draws = draws_of(generator, key).replace(order_choice=jnp.array([0.2, 0.7]))
    noise, _ = draws.host
    orders = np.argsort(draws.order_places[0]), np.arange(N)
    assert np.any(orders[0] != orders[1])
    expected = 0.0
    for b, (label, order) in enumerate(zip((1, 2), orders, strict=True)):
        for i, place in enumerate(order):
            token = x[b, place]
            clean = 0.9 * (0.8 * token + 0.6 * np.asarray(noise[:, b, i]))
            clean += float(PARAMS["of_class"][label]) + of_place[place]
            expected += (np.sum((clean - token) ** 2) + VARIATIONAL * np.sum(token**2)) / N
    found, _ = loss(generator, params, x, draws, share=0.5)["loss"]
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "kind, order",
    [
        ("random", range(N)),
        ("cells", [0, 1, 4, 5, 2, 3, 6, 7]),
        ("subsample", [0, 2, 1, 3, 4, 6, 5, 7]),
    ],
)
def test_sampled_tokens_land_in_the_places_that_the_host_was_told(key, kind, order):
    """It writes the place, so that in raster order they count up; untold it writes -1."""
    generator = make(kind, Host(takes_order=True))
    arguments = {"host": PARAMS}, Request(jnp.array([0, 1]), jax.random.split(key))
    y = generator.sample_sequence(*arguments)
    np.testing.assert_array_equal(y[:, :, 0], [list(order)] * 2)
    np.testing.assert_array_equal(generator.sample(*arguments)[:, :, 0], [list(range(N))] * 2)


@pytest.mark.parametrize("kind, told", [("learned", True), ("cells", False)])
def test_rows_of_a_matrix_have_no_places(key, kind, told):
    generator = make(kind, Host(takes_order=told))
    request = Request(jnp.array([0]), key[None])
    assert np.all(generator.sample_sequence({"host": PARAMS}, request) == -1)


# --- the loss ------------------------------------------------------------------------------------


def test_an_orthogonal_basis_leaves_the_hosts_loss(key, x):
    """Propositions 1 and 2: for a host that acts on each row alike, with noise A eps."""
    A = np.linalg.qr(np.random.default_rng(3).normal(size=(N, N)))[0]
    host = PARAMS | {"of_class": jnp.zeros(CLASSES + 1)}
    plain = make("raster")
    draws = draws_of(plain, key)
    noise, snr = draws.host
    expected = loss(plain, {"host": host}, x, draws)
    turned = draws.replace(host=(jnp.einsum("kn,rbnd->rbkd", jnp.float32(A), noise), snr))
    params = {"host": host, "basis": jnp.float32(A)}
    found = loss(make("random_orthogonal"), params, x, turned)
    assert found.keys() == expected.keys() == {"loss", "host_loss"}
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    learned = loss(make("learned"), params, x, turned)
    assert learned["loss"] == pytest.approx(expected["loss"], rel=1e-5)  # regularizer: 0


@pytest.mark.parametrize("variational", [False, True])
@pytest.mark.parametrize("objective", ["bar", "residual"])
def test_loss_of_a_learned_basis(key, x, objective, variational):
    host = Host(variational=variational)
    generator, A = make("learned", host, objective=objective, regularizer=0.7), near_orthogonal()
    draws = draws_of(generator, key)
    found = loss(generator, {"host": PARAMS, "basis": jnp.float32(A)}, x, draws)
    options = {"objective": objective, "weight": 0.7, "variational": variational}
    expected = by_hand(A, x, draws.host[0], **options)
    if objective == "bar":
        del expected["residual_loss"]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        total, weight = found[name]
        assert (total / weight, weight) == (pytest.approx(value, rel=1e-4), 2), name


@pytest.mark.parametrize("clip, used", [(0.0, 1.5), (1.0, 1.0), (2.0, 1.5)])
def test_snr_clip_bounds_the_residual_objectives_weight(key, x, clip, used):
    generator, A = make("learned", objective="residual", snr_clip=clip), near_orthogonal()
    draws = draws_of(generator, key)
    found = loss(generator, {"host": PARAMS, "basis": jnp.float32(A)}, x, draws)
    expected = by_hand(A, x, draws.host[0], snr=used)["residual_loss"]
    assert found["residual_loss"][0] / 2 == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("objective", ["bar", "residual"])
def test_gradient_reaches_the_basis_by_every_way(key, x, objective):
    """Central differences of the loss by hand: through input, target, reconstruction, and A A^T."""
    generator, A = make("learned", objective=objective), near_orthogonal()
    draws = draws_of(generator, key)
    run = loss_of(generator)

    def total(matrix):
        params = {"host": PARAMS, "basis": matrix}
        return run(params, jnp.float32(x), jnp.array([1, 2]), draws, 0.0, None)["loss"][0] / 2

    found = jax.grad(total)(jnp.float32(A))
    for i, j in ((0, 0), (2, 5), (7, 1)):
        step = np.zeros_like(A)
        step[i, j] = 1e-5
        ends = [
            by_hand(A + sign * step, x, draws.host[0], objective=objective)["loss"]
            for sign in (1, -1)
        ]
        assert found[i, j] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", ["frequency", "pca"])
def test_a_fixed_basis_has_the_hosts_loss_alone(key, x, kind):
    generator, A = make(kind, objective="residual"), near_orthogonal()
    draws = draws_of(generator, key)
    found = loss(generator, {"host": PARAMS, "basis": jnp.float32(A)}, x, draws)
    assert found.keys() == {"loss", "host_loss"} and found["loss"] == found["host_loss"]


def test_labels_are_dropped_in_training_where_the_draw_is_low(key, x):
    generator = make("raster", label_dropout=0.5)
    draws = draws_of(generator, key).replace(label=jnp.array([0.49, 0.5]))
    run = lambda labels, deterministic: loss(  # noqa: E731
        generator, {"host": PARAMS}, x, draws, labels, deterministic=deterministic
    )["loss"]
    assert run((1, 2), False) == run((CLASSES, 2), True) == run((3, 2), False)
    assert run((1, 2), True) != run((1, 2), False) != run((1, 3), False)


@pytest.mark.parametrize("objective", ["bar", "residual"])
def test_padding_does_not_count(key, x, objective):
    """Example 1 alone: what example 0 holds is of no matter."""
    generator, A = make("learned", objective=objective), near_orthogonal()
    draws = draws_of(generator, key)
    params, counted = {"host": PARAMS, "basis": jnp.float32(A)}, jnp.array([False, True])
    found = loss(generator, params, x, draws, counted=counted)
    noise = draws.host[0][:, 1:]
    expected = by_hand(A, x[1:], noise, labels=(2,), objective=objective)
    for name, (total, weight) in found.items():
        assert (total, weight) == (pytest.approx(expected[name], rel=1e-4), 1), name


def test_draws_of_an_example_depend_on_its_key_only(key):
    draw, keys = jax.jit(make("raster").draw), jax.random.split(key, 3)
    together, alone = draw(keys), draw(keys[1:2])
    take = {"host": (together.host[0][:, 1:2], together.host[1][:, 1:2])}
    take |= {n: getattr(together, n)[1:2] for n in ("label", "order_choice", "order_places")}
    jax.tree.map(np.testing.assert_array_equal, together.replace(**take), alone)
    assert len(np.unique(together.label)) == 3
