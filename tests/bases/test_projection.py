"""Tests of bar_jax/bases/projection.py, against SVDs in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_allclose, assert_array_equal

from bar_jax.bases import projection
from bar_jax.bases.projection import correction, project, projected
from bar_jax.runtime.mesh import make_mesh


def _with_singular_values(values, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """A random [rows, columns] float32 matrix with these singular values, up to rounding."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((n, len(values))))[0] for n in (rows, columns))
    return (u * values @ v.T).astype(np.float32)


def _clamped(A: np.ndarray, delta: float) -> np.ndarray:
    """The definition, float64."""
    u, s, vt = np.linalg.svd(np.asarray(A, np.float64), full_matrices=False)
    return u * np.clip(s, 1 - delta, 1 + delta) @ vt


@pytest.fixture
def svds(monkeypatch):
    """A function of A and delta: how many SVDs its correction computes (not only compiles)."""
    computed = []
    clamp = projection._clamp

    def counted(A, low, high):
        jax.debug.callback(lambda: computed.append(1))
        return clamp(A, low, high)

    monkeypatch.setattr(projection, "_clamp", counted)
    run = jax.jit(lambda A, delta: correction(A, delta), static_argnums=1)

    def count(A, delta):
        computed.clear()
        run(A, delta).block_until_ready()
        jax.effects_barrier()
        return len(computed)

    return count


@pytest.mark.parametrize("shape", [(12, 12), (5, 12), (12, 5)])
@pytest.mark.parametrize("delta", [0.0, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("spread", [0.001, 0.1, 0.4, 0.95])
def test_singular_values_are_clamped(shape, delta, spread):
    """Inside on both sides, outside on both, near and far."""
    values = np.linspace(1 - spread, 1 + spread, min(shape))
    A = _with_singular_values(values, *shape)
    found = jax.jit(project, static_argnums=1)(A, delta)
    assert found.dtype == jnp.float32
    assert_allclose(found, _clamped(A, delta), atol=5e-6)


@pytest.mark.parametrize("shape", [(40, 40), (12, 40), (40, 12)])
@pytest.mark.parametrize("scale", [1e-3, 0.02, 1.0, 5.0])
def test_hard_projection_is_the_polar_factor(shape, scale):
    """Beside scipy's polar decomposition, from near an orthogonal matrix to far from any."""
    rng = np.random.default_rng(0)
    A = _with_singular_values(np.ones(min(shape)), *shape)
    A = A + (scale * rng.standard_normal(shape)).astype(np.float32) / np.sqrt(max(shape))
    expected = scipy.linalg.polar(A.astype(np.float64))[0]
    assert_allclose(project(A, 0.0), expected, atol=2e-5)


@pytest.mark.parametrize("spread, times", [(0.001, 0), (0.02, 0), (0.03, 0), (0.2, 1), (0.7, 1)])
def test_near_an_orthogonal_matrix_the_polar_factor_needs_no_svd(svds, spread, times):
    """||A^T A - I||_F of 64 values 1 +- spread is 16 times spread: 0.5 is between 0.03 and 0.2.

    At 0.2 Newton-Schulz would converge too; but what is proved is not that.
    """
    A = _with_singular_values(1 + spread * np.array([1, -1] * 32), 64, 64)
    assert svds(A, 0.0) == times
    error = project(A, 0.0) - scipy.linalg.polar(A.astype(np.float64))[0]
    assert np.linalg.norm(error) < 6e-6  # an SVD's in float32; rounding of A alone is 5e-7


def test_reflections_stay_reflections():
    """The nearest orthogonal matrix may have determinant -1: nothing makes it a rotation."""
    A = _with_singular_values(np.ones(6), 6, 6)
    A[0] *= -np.sign(np.linalg.det(A))
    assert_allclose(project(A, 0.0), A, atol=1e-6)


@pytest.mark.parametrize("delta", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("shape", [(32, 32), (8, 32), (32, 8)])
def test_one_low_value_is_told_from_an_inside_one(svds, delta, shape):
    """The certificate is tight for a single low singular value: both sides of its boundary."""
    values = np.ones(min(shape))
    for low, times in ((1 - delta * (1 - 0.02), 0), (1 - delta * (1 + 0.02), 1)):
        values[0] = low
        A = _with_singular_values(values, *shape)
        assert svds(A, delta) == times
        assert np.any(correction(A, delta)) == bool(times)


@pytest.mark.parametrize("delta", [0.01, 0.1, 0.5])
def test_the_second_certificate_holds_where_the_first_gives_up(svds, delta):
    """64 values spread evenly over 0.8 of the interval, far beyond the first's bound."""
    A = _with_singular_values(np.linspace(1 - 0.8 * delta, 1 + 0.8 * delta, 64), 64, 64)
    error = np.linalg.norm(A.T.astype(np.float64) @ A - np.eye(64))
    assert error > 3 * (1 - (1 - delta) ** 2)
    assert svds(A, delta) == 0
    assert not np.any(correction(A, delta))


@pytest.mark.parametrize("delta", [1e-5, 0.002, 0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("size", [2, 24])
def test_certificates_never_hold_for_a_value_outside(svds, delta, size):
    """Above or below by a thousandth of delta or float32's rounding, alone or with others."""
    rng = np.random.default_rng(0)
    for seed in range(12):
        values = 1 + delta * rng.uniform(-1, 1, size) * rng.choice([0, 0.2, 1])
        values[0] = 1 + rng.choice([-1, 1]) * (delta * 1.001 + 1e-6)
        A = _with_singular_values(values, size, size, seed)
        assert svds(A, delta) == 1, values


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("delta", [0.0, 0.5])
def test_what_is_not_finite_is_not_taken_for_inside(bad, delta):
    """It shows in the result, as everywhere else in a diverged run."""
    A = np.eye(4, dtype=np.float32)
    A[1, 2] = bad
    assert not np.isfinite(project(A, delta)).all()


@pytest.mark.parametrize("delta", [-0.1, 1.0])
def test_delta_out_of_range(delta):
    with pytest.raises(ValueError, match=f"delta is {delta}"):
        project(np.eye(4), delta)


def _updates(spread: float, shape=(8, 8), seed: int = 0):
    """A and an update that ends on singular values 1 - spread to 1 + spread."""
    A = _with_singular_values(np.ones(min(shape)), *shape, seed)
    end = _with_singular_values(np.linspace(1 - spread, 1 + spread, min(shape)), *shape, seed + 1)
    return A, end - A


@pytest.mark.parametrize("kind, delta", [("soft", 0.5), ("soft", 0.1), ("hard", 0.5)])
@pytest.mark.parametrize("shape", [(8, 8), (3, 8), (8, 3)])
def test_updates_end_on_the_projection(kind, delta, shape):
    """Hard takes no notice of delta."""
    A, update = _updates(0.8, shape)
    tx = projected(kind, delta)
    new, _ = jax.jit(tx.update)(update, tx.init(A), A)
    expected = _clamped(A + update, 0.0 if kind == "hard" else delta)
    assert_allclose(optax.apply_updates(A, new), expected, atol=5e-6)


@pytest.mark.parametrize("spread", [0.1, 0.45])
def test_updates_that_stay_inside_pass_bit_for_bit(spread):
    """By the first certificate, and by the second."""
    A, update = _updates(spread)
    update = update * np.float32(0.9)  # with bits below those of A
    assert np.any((A + update) - A != update)
    tx = projected("soft", 0.5)
    new, _ = tx.update(update, tx.init(A), A)
    assert_array_equal(new, update)


def test_no_projection():
    A, update = _updates(0.9)
    tx = projected("none")
    assert_array_equal(tx.update(update, tx.init(A), A)[0], update)


def test_unknown_projection():
    with pytest.raises(ValueError, match="'firm'"):
        projected("firm")


def test_without_parameters():
    tx = projected("soft")
    with pytest.raises(ValueError, match="needs the params"):
        tx.update(np.eye(2), tx.init(np.eye(2)))


def _boxed(A):
    return nn.LogicallyPartitioned(A, ("rows", "tokens"))


@pytest.mark.parametrize("box", [lambda A: A, _boxed], ids=["plain", "boxed"])
@pytest.mark.parametrize("how", ["partition", "masked"])
def test_other_parameters_are_left_alone(box, how):
    """With the two ways that optax has to treat some parameters apart; others may be vectors."""
    A, update = _updates(0.8)
    params = {"basis": {"A": box(A)}, "bias": np.ones(3, np.float32)}
    updates = {"basis": {"A": box(update)}, "bias": np.full(3, 2, np.float32)}
    if how == "partition":
        labels = {"basis": "basis", "bias": "rest"}
        tx = optax.partition({"basis": projected("soft"), "rest": optax.scale(-1)}, labels)
        scale = -1
    else:
        tx = optax.masked(projected("soft"), {"basis": True, "bias": False})
        scale = 1
    new, _ = jax.jit(tx.update)(updates, tx.init(params), params)
    assert_array_equal(new["bias"], scale * updates["bias"])
    assert jax.tree.structure(new) == jax.tree.structure(updates)
    found = nn.unbox(optax.apply_updates(params, new))["basis"]["A"]
    assert_allclose(found, _clamped(A + update, 0.5), atol=5e-6)


def test_behind_adam():
    """Last in a chain: a hundred steps of a loss that pulls A to zero end on the interval."""
    A = jnp.asarray(_with_singular_values(np.ones(8), 8, 8))
    tx = optax.chain(optax.adam(0.02), projected("soft", 0.25))
    state = tx.init(A)

    @jax.jit
    def step(A, state):
        updates, state = tx.update(2 * A, state, A)
        return optax.apply_updates(A, updates), state

    for _ in range(100):
        A, state = step(A, state)
    assert_allclose(np.linalg.svd(np.asarray(A), compute_uv=False), 0.75, atol=1e-5)


@pytest.mark.parametrize("spread", [0.1, 0.45, 0.8], ids=["first", "second", "svd"])
@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("spec", [P("fsdp"), P(None, "fsdp"), P("fsdp", "tensor"), P()])
def test_split_over_a_mesh(kind, spread, spec):
    """A and its update split over eight devices: the numbers of one device, split as they came."""
    mesh = make_mesh(1, 4, 2)
    sharding = NamedSharding(mesh, spec)
    A, update = _updates(spread)
    tx = projected(kind, 0.5)

    def step(A, update):
        return optax.apply_updates(A, tx.update(update, tx.init(A), A)[0])

    found = jax.jit(step, out_shardings=sharding)(*jax.device_put((A, update), sharding))
    assert found.sharding == sharding
    assert_allclose(found, _clamped(A + update, 0.5 if kind == "soft" else 0), atol=5e-6)
