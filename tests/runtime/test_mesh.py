"""Tests of bar_jax/runtime/mesh.py, and of training in several layouts on eight virtual devices."""

import functools
import math
import types
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from bar_jax.generators.causal import CausalTransformer
from bar_jax.generators.masked_bit import MaskedBitGenerator
from bar_jax.heads.masked_bit import MaskedBitHead
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime.errors import InputError
from bar_jax.tokenizers.bar_fsq import BarFSQ
from bar_jax.training.optimizer import adamw
from bar_jax.training.step import UpdateRule, fresh_state, init_state, train_step

STEPS, BATCH = 20, 16


@pytest.mark.parametrize(
    "wanted, sizes",
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((1, -1, 1), (1, 8, 1)),
        ((2, -1, 2), (2, 2, 2)),
        ((2, 2, 2), (2, 2, 2)),
        ((8, -1, 1), (8, 1, 1)),
    ],
)
def test_axis_sizes(wanted, sizes):
    assert mesh_lib.axis_sizes(*wanted, devices=8) == sizes


@pytest.mark.parametrize(
    "wanted, expected",
    [
        ((-1, -1, 1), "at most one"),
        ((0, 1, 1), "positive"),
        ((-2, 1, 1), "positive"),
        ((3, -1, 1), "8 devices"),
        ((2, 2, 1), "8 devices"),
        ((16, 1, 1), "8 devices"),
    ],
)
def test_wrong_axis_sizes_are_refused(wanted, expected):
    found = "data={}, fsdp={}, tensor={}".format(*wanted)
    with pytest.raises(InputError, match=f"^mesh: found {found}, expected .*{expected}"):
        mesh_lib.axis_sizes(*wanted, devices=8)


def test_mesh_axes():
    mesh = mesh_lib.make_mesh(2, -1, 2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert mesh_lib.batch_ways(mesh) == 4


def test_batches_are_cut_over_data_and_fsdp():
    mesh = mesh_lib.make_mesh(2, 2, 2)
    batch = mesh_lib.put_batch(mesh, {"x": np.arange(24).reshape(8, 3), "y": np.arange(8)})
    rows = {shard.device.id: shard.data.tolist() for shard in batch["y"].addressable_shards}
    assert rows == {i: [2 * (i // 2), 2 * (i // 2) + 1] for i in range(8)}
    np.testing.assert_array_equal(batch["x"], np.arange(24).reshape(8, 3))


class Device(NamedTuple):
    """What is looked at of a device, of processes that are not there."""

    process_index: int


def share_of(process, order, data, fsdp, tensor, monkeypatch):
    """The share of a process, of devices that belong to processes in a given order."""
    devices = np.array([None, *map(Device, order)], object)[1:].reshape(data, fsdp, tensor)
    mesh = types.SimpleNamespace(
        devices=devices, shape=dict(zip(mesh_lib.AXES, devices.shape, strict=True))
    )
    monkeypatch.setattr(jax, "process_index", lambda: process)
    return mesh_lib.batch_share(mesh)


@pytest.mark.parametrize(
    "order, sizes, rows, indices, firsts",
    [
        ([0, 0, 1, 1], (4, 1, 1), [[0, 1, 2, 3], [4, 5, 6, 7]], [0, 1], [True, True]),
        ([0, 0, 1, 1], (1, 2, 2), [[0, 1, 2, 3], [4, 5, 6, 7]], [0, 1], [True, True]),
        # A torus may lay processes out in blocks.
        ([0, 1, 0, 1], (2, 2, 1), [[0, 1, 4, 5], [2, 3, 6, 7]], [0, 1], [True, True]),
        # `tensor` over two processes: they hold the same rows, which count once.
        ([0, 0, 1, 1], (1, 1, 4), [list(range(8))] * 2, [0, 0], [True, False]),
        (
            *([2, 1, 0, 3], (2, 1, 2)),
            [[4, 5, 6, 7], [0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]],
            *([1, 0, 0, 1], [True, True, False, False]),
        ),
    ],
    ids=["data", "fsdp and tensor", "blocks", "tensor", "any order"],
)
def test_shares_of_a_batch(order, sizes, rows, indices, firsts, monkeypatch):
    shares = [share_of(p, order, *sizes, monkeypatch) for p in range(len(set(order)))]
    assert [share.rows(8).tolist() for share in shares] == rows
    assert [share.index for share in shares] == indices
    assert [share.first for share in shares] == firsts


def test_shares_that_overlap_are_refused(monkeypatch):
    with pytest.raises(InputError, match="^mesh: found data=2, fsdp=1, tensor=3, expected"):
        share_of(0, [0, 0, 1, 1, 2, 2], 2, 1, 3, monkeypatch)


def test_parameters_are_cut_by_their_logical_axes():
    """An axis that is not named, not in the rules, or not divisible stays whole."""
    mesh = mesh_lib.make_mesh(2, 2, 2)
    boxed = {
        "kernel": nn.LogicallyPartitioned(jnp.zeros((4, 6)), ("embed", "mlp")),
        "odd": nn.LogicallyPartitioned(jnp.zeros((3, 6)), ("embed", "heads")),
        "stacked": nn.LogicallyPartitioned(jnp.zeros((2, 4, 6)), ("layers", "embed", None)),
        "plain": jnp.zeros(4),
    }
    got = jax.tree.map(lambda sharding: sharding.spec, mesh_lib.shardings(mesh, boxed))
    assert got == {
        "kernel": P("fsdp", "tensor"),
        "odd": P(None, "tensor"),
        "stacked": P(None, "fsdp", None),
        "plain": P(),
    }


def test_activations_keep_their_batch_axis():
    """Outside a mesh, or where the batch does not divide, nothing happens."""
    x = jnp.zeros((8, 4))
    assert mesh_lib.constrain_batch(x) is x
    with jax.set_mesh(mesh_lib.make_mesh(2, 2, 2)):
        assert jax.jit(mesh_lib.constrain_batch)(x).sharding.spec == P(("data", "fsdp"))
        assert jax.jit(mesh_lib.constrain_batch)(x[:3]).shape == (3, 4)


# Training


def test_small_tables_are_whole_on_every_device():
    """Outside a mesh nothing happens."""
    table = jnp.zeros((8, 4))
    assert mesh_lib.gathered(table) is table
    mesh = mesh_lib.make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        cut = jax.device_put(table, jax.sharding.NamedSharding(mesh, P(None, "fsdp")))
        assert jax.jit(mesh_lib.gathered)(cut).sharding.is_fully_replicated


def test_kernels_are_gathered_and_their_gradients_cut():
    """Whole over `fsdp` in the product, while `tensor` still cuts them; laid out again after it."""
    axes, rng = ("embed", "mlp"), np.random.default_rng(0)
    kernel, x = rng.normal(size=(8, 4)), rng.normal(size=(8, 8))
    mesh = mesh_lib.make_mesh(2, 2, 2)
    layout = jax.NamedSharding(mesh, P("fsdp", "tensor"))
    kernel, x = jax.device_put(kernel, layout), mesh_lib.put_batch(mesh, {"x": x})["x"]

    def loss(kernel, x):
        return jnp.sum(jnp.sin(x @ mesh_lib.gathered_kernel(kernel, axes)))

    with jax.set_mesh(mesh):
        whole = jax.jit(mesh_lib.gathered_kernel, static_argnums=1)(kernel, axes)
        assert whole.sharding.spec == P(None, "tensor")
        gradient = jax.jit(jax.grad(loss))(kernel, x)
        assert gradient.sharding.is_equivalent_to(layout, 2)
    x, kernel = np.asarray(x), np.asarray(kernel)
    np.testing.assert_allclose(gradient, x.T @ np.cos(x @ kernel), rtol=1e-5, atol=1e-5)


def test_kernels_that_fsdp_does_not_divide_stay_as_they_are():
    mesh, kernel = mesh_lib.make_mesh(1, 8, 1), jnp.ones((12, 4))
    with jax.set_mesh(mesh):
        assert mesh_lib.gathered_kernel(kernel, ("embed", "mlp")) is kernel
        assert mesh_lib.gathered_kernel(kernel, (None, "mlp")) is kernel


def generator_problem():
    trunk = CausalTransformer(
        4, (2, 2), 3, width=16, depth=2, heads=2, output_width=16, class_repeats=2
    )
    module = MaskedBitGenerator(trunk, MaskedBitHead(4, 16, 1), (2, 2))
    rng = np.random.default_rng(0)
    batch = {
        "bits": rng.integers(0, 2, (BATCH, 4, 4)).astype(np.uint8),
        "labels": rng.integers(0, 3, BATCH).astype(np.int32),
    }

    def init(key):
        inputs = jnp.zeros((1, 4, 4), jnp.uint8), jnp.zeros(1, jnp.int32), key[None]
        return module.init(key, *inputs, method=module.initialize)["params"]

    def loss(params, batch, keys, frozen):
        args = batch["bits"], batch["labels"], module.draw(keys.examples), 0.5, False
        return module.apply({"params": params}, *args, method=module.loss)

    return init, loss, batch


def tokenizer_problem():
    sizes = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 32}
    module = BarFSQ(8, 4, 4, encoder=sizes, decoder=sizes, centered_bits=True)
    batch = {"image": np.random.default_rng(0).uniform(-1, 1, (BATCH, 8, 8, 3)).astype(np.float32)}

    def init(key):
        return module.init(key, jnp.zeros((1, 8, 8, 3)))["params"]

    def loss(params, batch, keys, frozen):
        error = module.apply({"params": params}, batch["image"])[0] - batch["image"]
        return {"loss": (jnp.sum(error**2), jnp.array(error.size, jnp.float32))}

    return init, loss, batch


PROBLEMS = {"generator": generator_problem, "tokenizer": tokenizer_problem}


# The first of these does nothing but remember the gradient.
TX = optax.chain(
    optax.trace(decay=0.0),
    adamw(
        lambda step: 1e-3,
        b1=0.9,
        b2=0.96,
        weight_decay=0.03,
        no_decay=("norm", "bias", "embed", "adaln"),
        clip_norm=1.0,
    ),
)
# Compiles in half the time, and that is most of what these tests take.
FAST = {"xla_backend_optimization_level": 0}


def start(problem, layout):
    """The mesh of a layout, a function that makes the start state there, and its shapes."""
    mesh = mesh_lib.make_mesh(*layout, devices=jax.devices()[: math.prod(layout)])
    init, _, _ = PROBLEMS[problem]()
    with jax.set_mesh(mesh):
        return mesh, *init_state(lambda k: fresh_state(init(k), TX, False), jax.random.key(0), mesh)


@functools.cache
def start_values(problem):
    """The start state as one device makes it."""
    _, make_state, _ = start(problem, (1, 1, 1))
    return jax.device_get(make_state())


@functools.cache
def trained(problem, layout):
    """Gradient of the first step, losses of all, and the share of the parameters on each device."""
    _, loss, batch = PROBLEMS[problem]()
    mesh, _, shapes = start(problem, layout)
    step = functools.partial(train_step, loss_fn=loss, rule=UpdateRule(TX, lambda step: 1e-3))
    step = jax.jit(step, donate_argnums=0, compiler_options=FAST)
    with jax.set_mesh(mesh):
        shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
        state = jax.device_put(start_values(problem), shardings)
        placed, losses = mesh_lib.put_batch(mesh, batch), []
        for i in range(STEPS):
            state, metrics = step(state, placed, jax.random.key(1))
            losses.append(float(metrics["loss"]))
            if i == 0:
                gradient = jax.device_get(state.opt_state[0].trace)
    leaves = jax.tree.leaves(state.params)
    held = dict.fromkeys(mesh.devices.flat, 0)
    for shard in (shard for leaf in leaves for shard in leaf.addressable_shards):
        held[shard.device] += shard.data.nbytes
    return (
        gradient,
        losses,
        [held_bytes / sum(leaf.nbytes for leaf in leaves) for held_bytes in held.values()],
    )


def test_start_values_do_not_depend_on_the_layout():
    _, make_state, shapes = start("tokenizer", (2, 2, 2))
    state = make_state()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        jax.device_get(state),
        start_values("tokenizer"),
    )
    assert jax.tree.all(jax.tree.map(lambda a, b: a.sharding == b.sharding, state, shapes))


# data, fsdp, tensor -> most of the parameters that a device may hold
LAYOUTS = [
    pytest.param((2, 2, 2), 0.5),
    pytest.param((1, 8, 1), 0.25, marks=[pytest.mark.slow, pytest.mark.exhaustive]),
    pytest.param((8, 1, 1), 1.0, marks=[pytest.mark.slow, pytest.mark.exhaustive]),
]


@pytest.mark.parametrize("layout, largest", LAYOUTS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_training_is_the_same_in_every_layout(problem, layout, largest):
    """And every device holds 1 / (fsdp * tensor) of the parameters and the few that are not cut."""
    expected_gradient, expected_losses, _ = trained(problem, (1, 1, 1))
    gradient, losses, shares = trained(problem, layout)
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])  # noqa: E731
    difference = np.linalg.norm(flat(gradient) - flat(expected_gradient))
    assert difference <= 1e-5 * np.linalg.norm(flat(expected_gradient))
    np.testing.assert_allclose(losses, expected_losses, atol=1e-4)
    assert losses[-1] < losses[0]
    assert len(shares) == 8 and len(set(shares)) == 1
    assert 1 / math.prod(layout[1:]) <= shares[0] <= largest
