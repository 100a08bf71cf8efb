"""Tests of bar_jax/generators/causal.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from bar_jax.generators.causal import CausalTransformer
from bar_jax.generators.masked_bit import MaskedBitGenerator
from bar_jax.heads.masked_bit import MaskedBitHead
from bar_jax.training.optimizer import decays

BATCH, BITS, GRID, CLASSES, REPEATS = 2, 3, (2, 3), 4, 3
LENGTH = GRID[0] * GRID[1]


def transformer(**changes):
    sizes = {"width": 16, "depth": 2, "heads": 4, "output_width": 5, "class_repeats": REPEATS}
    return CausalTransformer(BITS, GRID, CLASSES, **(sizes | changes))


@pytest.fixture(scope="module")
def inputs():
    """bits, labels, and two random orders."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (BATCH, LENGTH, BITS))
    order = np.stack([rng.permutation(LENGTH) for _ in range(BATCH)])
    return jnp.asarray(bits), jnp.array([1, 3]), jnp.asarray(order)


@pytest.fixture(scope="module")
def params(inputs):
    """Random parameters: as initialised, no block does anything."""
    shapes = meta.unbox(jax.eval_shape(transformer().init, jax.random.key(0), *inputs))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) / 2, jnp.float32), shapes)


@pytest.fixture(scope="module")
def apply():
    return jax.jit(transformer().apply)


@pytest.mark.parametrize("changed", range(LENGTH))
def test_a_token_reaches_only_what_is_written_after_it(apply, params, inputs, changed):
    """Row i of the output predicts token i: the tokens before i are all that it may know."""
    bits, labels, order = inputs
    before = apply(params, bits, labels, order)
    after = apply(params, bits.at[:, changed].set(1 - bits[:, changed]), labels, order)
    same = np.all(before == after, axis=(0, 2))
    np.testing.assert_array_equal(same, np.arange(LENGTH) <= changed)


def test_the_class_reaches_every_output(apply, params, inputs):
    bits, labels, order = inputs
    same = apply(params, bits, labels, order) == apply(params, bits, labels + 1 - 2, order)
    assert not np.any(np.all(same, axis=-1))


def test_the_order_ahead_is_known_one_token_far(apply, params, inputs):
    """Swapping the places of the last two tokens changes outputs L - 2 and L - 1 only."""
    bits, labels, order = inputs
    swapped = order.at[:, -2:].set(order[:, :-3:-1])
    same = np.all(
        apply(params, bits, labels, order) == apply(params, bits, labels, swapped), axis=(0, 2)
    )
    np.testing.assert_array_equal(same, np.arange(LENGTH) < LENGTH - 2)


def test_rows_of_the_places():
    """2 class copies, order 2, 0, 1: rows 0..2 are the prefix, row 3 + p is place p."""
    module = transformer(class_repeats=2)
    places = module.places(jnp.array([[2, 0, 1]]), 0, 6)
    np.testing.assert_array_equal(places.own, [[0, 1, 2, 5, 3, 4]])
    np.testing.assert_array_equal(places.target, [[5, 5, 5, 3, 4, 4]])
    piece = module.places(jnp.array([[2, 0, 1]]), 2, 2)
    np.testing.assert_array_equal(piece.own, [[2, 5]])
    np.testing.assert_array_equal(piece.target, [[5, 3]])


def loss_and_gradient(module, params, inputs):
    return jax.jit(
        jax.value_and_grad(lambda params: jnp.sum(jnp.sin(module.apply(params, *inputs))))
    )(params)


@pytest.fixture(scope="module")
def plain(params, inputs):
    return loss_and_gradient(transformer(), params, inputs)


def test_remat_gives_the_same_numbers(plain, params, inputs):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        loss_and_gradient(transformer(remat=True), params, inputs),
        plain,
    )


def test_more_layers_make_no_longer_a_program(inputs):
    """Layers are scanned: 32 compile as fast as 2."""
    lengths = []
    for depth in (2, 32):
        module = transformer(depth=depth)
        shapes = meta.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))
        gradient = jax.grad(lambda params, m=module: jnp.sum(m.apply(params, *inputs)))
        lengths.append(len(str(jax.make_jaxpr(gradient)(shapes)).splitlines()))
    assert lengths[1] < 1.01 * lengths[0]  # lines; some are broken otherwise


@pytest.mark.parametrize("kind", ["dropout", "attention_dropout"])
def test_dropout_acts_with_a_dropout_rng_only(apply, params, inputs, key, kind):
    module = transformer(**{kind: 0.5})
    run = jax.jit(lambda params, key: module.apply(params, *inputs, rngs={"dropout": key}))
    plain, dropped = apply(params, *inputs), run(params, key)
    np.testing.assert_allclose(jax.jit(module.apply)(params, *inputs), plain, atol=1e-5)
    assert not np.allclose(dropped, plain, atol=1e-3)
    assert not np.allclose(dropped, run(params, jax.random.key(1)), atol=1e-3)


def test_dropout_acts_on_what_attention_adds(params, inputs, key):
    """With MLPs that add nothing."""
    module = transformer(dropout=0.5)
    quiet = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.zeros_like(x) if "down" in jax.tree_util.keystr(path) else x, params
    )
    run = jax.jit(lambda key: module.apply(quiet, *inputs, rngs={"dropout": key}))
    assert not np.allclose(run(key), run(jax.random.key(1)), atol=1e-3)


def test_bfloat16_keeps_float32_parameters(inputs, key):
    module = transformer(dtype=jnp.bfloat16)
    z, params = jax.eval_shape(module.init_with_output, key, *inputs)
    assert z.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_initialisation_is_the_published_one(inputs, key):
    """normal(0.02), norms 1, biases 0, and zero in adaLN."""
    module = transformer(width=64, output_width=64)
    params = meta.unbox(jax.jit(module.init)(key, *inputs))["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name, leaf = jax.tree_util.keystr(path, simple=True, separator="/"), np.asarray(leaf)
        if "adaln/" in name or name.endswith("bias"):
            assert not np.any(leaf), name
        elif "norm/" in name:
            assert np.all(leaf == 1), name
        else:
            assert np.std(leaf) == pytest.approx(0.02, rel=0.3), name
            assert abs(np.mean(leaf)) < 0.005, name


# Published sizes: width, depth, heads

SIZES = {"b": (768, 24, 12), "l": (1280, 32, 16)}


@functools.cache
def shapes(size, grid, bits):
    """Shapes of a published generator's parameters: tokens of the grid have `bits` bits."""
    width, depth, heads = SIZES[size]
    trunk = CausalTransformer(bits, grid, 1000, width, depth, heads, output_width=2048)
    generator = MaskedBitGenerator(trunk, MaskedBitHead(bits, 2048, 3), grid)
    tokens = jax.ShapeDtypeStruct((1, grid[0] * grid[1], bits), jnp.uint8)
    labels = jax.ShapeDtypeStruct((1,), jnp.int32)
    key = jax.random.key(0)
    init = functools.partial(generator.init, method=generator.initialize)
    return meta.unbox(jax.eval_shape(init, key, tokens, labels, key[None]))["params"]


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "size, grid, bits, parameters",
    [
        ("b", (16, 16), 16, 415_322_158),
        ("b", (8, 8), 64, 415_076_098),
        ("b", (4, 4), 256, 415_752_223),
        ("l", (16, 16), 16, 1_107_798_990),
        ("l", (32, 32), 10, 1_110_727_993),
    ],
)
def test_published_sizes_have_the_published_parameters(size, grid, bits, parameters):
    assert count(shapes(size, grid, bits)) == parameters


def test_the_published_parameters_decay():
    tree = shapes("b", (16, 16), 16)
    decayed = jax.tree.map(
        lambda leaf, on: leaf if on else None,
        tree,
        decays(tree, ("norm", "bias", "embed", "adaln")),
    )
    assert count(decayed) == 276_884_224
