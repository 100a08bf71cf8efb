"""Tests of bar_jax/generators/masked_bit.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from bar_jax.bases import Basis, permutation
from bar_jax.generators.causal import CausalTransformer
from bar_jax.generators.masked_bit import (
    MaskedBitGenerator,
    record_tokens,
    sample_tokens,
    token_noise,
)
from bar_jax.generators.request import Kept, Request
from bar_jax.generators.settings import Settings
from bar_jax.generators.shuffle import shuffle
from bar_jax.heads.bit import BitHead
from bar_jax.heads.linear import LinearHead, code_to_bits
from bar_jax.heads.masked_bit import MaskedBitHead
from bar_jax.nn import decoding
from bar_jax.runtime import mesh as mesh_lib

pytestmark = pytest.mark.slow
CLASSES = 4
# patch size -> bits of the tokenizer's tokens, their grid, unmasking schedule
SETTINGS = {1: (4, (2, 3), (1, 3)), 2: (2, (4, 4), (3, 5))}


def make(patch_size, **changes):
    k, token_grid, _ = SETTINGS[patch_size]
    bits = k * patch_size**2
    trunk = CausalTransformer(
        bits,
        tuple(side // patch_size for side in token_grid),
        CLASSES,
        width=16,
        depth=2,
        heads=4,
        output_width=12,
        class_repeats=2,
    )
    return MaskedBitGenerator(trunk, MaskedBitHead(bits, 12, 1), token_grid, patch_size, **changes)


@functools.cache
def params_of(patch_size):
    return random_params(make(patch_size))


@functools.cache
def random_params(generator):
    """Random parameters (as initialised, no block does anything) under which tokens differ."""
    key = jax.random.key(0)
    init = functools.partial(generator.init, method=generator.initialize)
    bits = jnp.zeros((1, *generator.token_shape), jnp.uint8)
    arguments = bits, jnp.zeros(1, jnp.int32), key[None]
    shapes = meta.unbox(jax.eval_shape(init, key, *arguments))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) / 2, jnp.float32), shapes)
    # 512 features of the time, 12 of z: on equal terms the bits would not depend on z.
    params["head"]["time_embed_in"]["kernel"] /= 50
    return params


@functools.cache
def sampler(patch_size, guided, forced=False):
    """(labels, order, keys, temperature[, bits, keep]) -> bits and what they were drawn from."""
    generator, schedule = make(patch_size), SETTINGS[patch_size][2]

    @jax.jit
    def run(params, labels, order, keys, temperature, *kept):
        settings = Settings(guided, schedule)
        kept = Kept(*kept) if forced else None
        request = Request(labels, keys, 3.0, temperature, kept, settings)
        noise = token_noise(generator.head, keys, schedule)
        return record_tokens(generator, params, request, order, noise)

    return functools.partial(run, params_of(patch_size))


@functools.cache
def trunk(patch_size):
    """The whole sequence at once: (tokens in the order written, labels, order) -> [B, L, W]."""
    module = make(patch_size).trunk
    return functools.partial(jax.jit(module.apply), {"params": params_of(patch_size)["trunk"]})


def written(bits, patch_size, order):
    """The tokens that a generator wrote, in the order in which it wrote them."""
    return permutation.gather(shuffle(bits, SETTINGS[patch_size][1], patch_size), order)


def raster(batch, patch_size):
    length = make(patch_size).trunk.num_tokens
    return jnp.broadcast_to(jnp.arange(length), (batch, length))


@pytest.mark.parametrize("random_order", [False, True])
@pytest.mark.parametrize("patch_size, guided", [(1, False), (1, True), (2, True)])
def test_the_cache_changes_nothing(key, patch_size, guided, random_order):
    """With guidance the second half of the batch has the label "no class", which is num_classes."""
    labels, keys = jnp.array([1, 3]), jax.random.split(key, 2)
    order = raster(2, patch_size)
    if random_order:
        order = jnp.argsort(jax.random.uniform(key, order.shape), axis=1)
    bits, recorded = sampler(patch_size, guided)(labels, order, keys, 0.0)
    tokens = written(bits, patch_size, order)
    if guided:
        tokens, order = jnp.concatenate([tokens, tokens]), jnp.concatenate([order, order])
        labels = jnp.concatenate([labels, jnp.full(2, CLASSES)])
    z = trunk(patch_size)(tokens, labels, order)
    np.testing.assert_allclose(recorded["z"].swapaxes(0, 1), z, atol=2e-5)


def test_modulations_ahead_or_in_the_loop_are_the_same(key, monkeypatch):
    labels, order, keys = jnp.array([1, 3]), raster(2, 1), jax.random.split(key, 2)
    _, ahead = sampler(1, True)(labels, order, keys, 1.0)
    monkeypatch.setattr(decoding, "AHEAD_BYTES", 0)
    sampler.cache_clear()
    _, in_the_loop = sampler(1, True)(labels, order, keys, 1.0)
    sampler.cache_clear()
    np.testing.assert_allclose(ahead["z"], in_the_loop["z"], atol=2e-5)


@pytest.mark.parametrize("kind", ["bit", "linear"])
def test_every_head_samples_with_the_trunk(key, kind):
    """With the head's own logits at temperature 0, token by token along the trunk's outputs."""
    head = {"bit": BitHead, "linear": LinearHead}[kind](4, 12)
    generator = make(1).clone(head=head)
    params = dict(params_of(1))
    shapes = meta.unbox(jax.eval_shape(head.init, key, jnp.zeros((1, 12))))["params"]
    rng = np.random.default_rng(1)
    params["head"] = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)
    labels, order, keys = jnp.array([1, 3]), raster(2, 1), jax.random.split(key, 2)
    request, noise = Request(labels, temperature=0.0), token_noise(head, keys, ())
    bits, recorded = jax.jit(lambda p: record_tokens(generator, p, request, order, noise))(params)
    z = trunk(1)(written(bits, 1, order), labels, order)
    np.testing.assert_allclose(recorded["z"].swapaxes(0, 1), z, atol=2e-5)
    likeliest = np.argmax(head.apply({"params": params["head"]}, z), axis=-1)
    if kind == "linear":
        likeliest = code_to_bits(jnp.asarray(likeliest), 4)
    np.testing.assert_array_equal(bits, likeliest)


def test_guidance_grows_from_none_at_the_first_token(key):
    """s = 1 + (S - 1) i / L."""
    generator = make(1)
    length, bits = generator.trunk.num_tokens, generator.head.bits
    labels, order = jnp.array([1, 3]), raster(2, 1)
    _, recorded = sampler(1, True)(labels, order, jax.random.split(key, 2), 0.0)
    params = {"params": params_of(1)["head"]}
    head = lambda z: generator.head.apply(  # noqa: E731
        params, jnp.full((4, bits), 2), z, jnp.ones(4)
    )
    logits = jax.jit(jax.vmap(head))(recorded["z"])  # the head's first step: all bits hidden
    conditional, unconditional = logits[:, :2], logits[:, 2:]
    scale = (1 + 2.0 * np.arange(length) / length)[:, None, None, None]
    expected = unconditional + scale * (conditional - unconditional)
    np.testing.assert_allclose(recorded["logits"][:, 0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_kept_tokens_are_forced_and_influence_the_rest(key, patch_size):
    """Kept: what the sampler would not have written, in the first places and one more."""
    k, (rows, columns), _ = SETTINGS[patch_size]
    labels, order, keys = jnp.array([1, 3]), raster(2, patch_size), jax.random.split(key, 2)
    free, _ = sampler(patch_size, False)(labels, order, keys, 0.0)
    keep = jnp.zeros((2, rows * columns), bool).at[:, :2].set(True).at[:, columns].set(True)
    if patch_size == 2:  # places 0, 1, 4 and 5 are one token
        keep = keep.at[:, columns + 1].set(True).at[:, 2].set(True)  # of 2's token only a part
    run = functools.partial(sampler(patch_size, False, True), labels, order, keys, 0.0, 1 - free)
    forced, recorded = run(keep)
    whole = keep if patch_size == 1 else keep.at[:, 2].set(False)
    np.testing.assert_array_equal(forced, run(whole)[0])  # a part of a token is not kept
    np.testing.assert_array_equal(forced[whole], 1 - free[whole])
    z = trunk(patch_size)(written(forced, patch_size, order), labels, order)
    np.testing.assert_allclose(recorded["z"].swapaxes(0, 1), z, atol=2e-5)
    assert np.any(forced[~whole] != free[~whole])


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param((8, 1, 1), marks=pytest.mark.exhaustive),
        pytest.param((1, 8, 1), marks=pytest.mark.exhaustive),
        (2, 2, 2),
    ],
)
def test_a_mesh_changes_nothing(key, layout):
    """Parameters and batch cut over data, fsdp and tensor; on one device the test beside it."""
    generator = make(1)
    init = functools.partial(generator.init, method=generator.initialize)
    arguments = jnp.zeros((1, 6, 4), jnp.uint8), jnp.zeros(1, jnp.int32), key[None]
    mesh = mesh_lib.make_mesh(*layout)
    shardings = mesh_lib.shardings(mesh, jax.eval_shape(init, key, *arguments)["params"])
    labels, order = jnp.arange(8) % CLASSES, raster(8, 1)
    keys, run = jax.random.split(key, 8), sampler(1, True).func
    bits, expected = run(params_of(1), labels, order, keys, 1.0)
    with jax.set_mesh(mesh):
        cut = jax.device_put((labels, order, keys), mesh_lib.batch_sharding(mesh))
        params = jax.device_put(params_of(1), shardings)
        on_mesh, recorded = run(params, *cut, 1.0)
    np.testing.assert_array_equal(on_mesh, bits)
    np.testing.assert_allclose(recorded["z"], expected["z"], atol=2e-5)


def test_an_example_is_the_same_alone_and_in_a_batch(key):
    labels, keys = jnp.array([0, 3]), jax.random.split(key, 2)
    together, _ = sampler(1, False)(labels, raster(2, 1), keys, 2.0)
    alone, _ = sampler(1, False)(labels[1:], raster(1, 1), keys[1:], 2.0)
    np.testing.assert_array_equal(together[1:], alone)
    assert together.dtype == jnp.uint8


def test_keys_make_the_difference(key):
    labels, keys = jnp.array([1, 1]), jax.random.split(key, 2)
    bits, _ = sampler(1, False)(labels, raster(2, 1), keys, 2.0)
    assert np.any(bits[0] != bits[1])
    same, _ = sampler(1, False)(labels, raster(2, 1), keys[jnp.array([0, 0])], 2.0)
    np.testing.assert_array_equal(same[0], same[1])


# Training


@functools.cache
def loss(deterministic):
    """(bits, labels, label dropout's draws, counted) -> sums, of fixed other draws."""
    generator = make(1, label_dropout=0.5)

    @jax.jit
    def run(params, bits, labels, label_draws, counted):
        draws = generator.draw(jax.random.split(jax.random.key(0), bits.shape[0]))
        draws = draws.replace(label=label_draws)
        return generator.apply(
            {"params": params}, bits, labels, draws, 1.0, deterministic, counted,
            method=generator.loss,
        )  # fmt: skip

    return functools.partial(run, params_of(1))


@pytest.fixture(scope="module")
def bits():
    return jnp.asarray(np.random.default_rng(0).integers(0, 2, (3, 6, 4)), jnp.uint8)


def test_labels_are_dropped_where_the_draw_is_below_label_dropout(bits):
    run = lambda labels, draws: float(  # noqa: E731
        loss(False)(bits, jnp.array(labels), jnp.array(draws), jnp.ones(3, bool))["loss"][0]
    )
    dropped = run([0, 1, 2], [0.0, 0.2, 0.49])
    assert run([3, 3, 3], [0.0, 0.2, 0.49]) == dropped
    assert run([CLASSES] * 3, [0.9] * 3) == dropped
    assert run([0, 1, 2], [0.0, 0.2, 0.5]) != dropped
    assert run([3, 1, 2], [0.9, 0.2, 0.4]) != run([0, 1, 2], [0.9, 0.2, 0.4])


def test_evaluation_keeps_every_label(bits):
    run = lambda labels, draws: float(  # noqa: E731
        loss(True)(bits, jnp.array(labels), jnp.array(draws), jnp.ones(3, bool))["loss"][0]
    )
    assert run([0, 1, 2], [0.0] * 3) == run([0, 1, 2], [0.9] * 3) != run([3, 3, 3], [0.0] * 3)


def test_padding_does_not_count(bits):
    """Only example 1 counts: what the others hold is of no matter."""
    labels, draws, counted = jnp.array([0, 1, 2]), jnp.ones(3), jnp.array([False, True, False])
    other = (1 - bits).at[1].set(bits[1])
    one = loss(False)(bits, labels, draws, counted)
    two = loss(False)(other, jnp.array([3, 1, 3]), draws, counted)
    assert one["loss"][0] > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, two)


def test_draws_of_an_example_depend_on_its_key_only(key):
    draw, keys = jax.jit(make(1).draw), jax.random.split(key, 3)
    together, alone = draw(keys), draw(keys[1:2])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1:2], b), together, alone)
    assert len(np.unique(together.label)) == 3


# Orders


@functools.cache
def ordered_loss(kind):
    """(bits, draws, random share) -> loss of a basis of this kind; 2 x 4 tokens."""
    trunk = make(1).trunk.clone(grid=(2, 4))
    generator = MaskedBitGenerator(
        trunk, make(1).head, (2, 4), label_dropout=0.0, basis=Basis(kind, block=2)
    )

    @jax.jit
    def run(params, bits, draws, share):
        found = generator.apply(
            {"params": params}, bits, jnp.array([0, 3]), draws, share, True,
            method=generator.loss,
        )  # fmt: skip
        return found["loss"][0]

    return generator, functools.partial(run, random_params(generator))


ORDERS = {
    "raster": [0, 1, 2, 3, 4, 5, 6, 7],
    "cells": [0, 1, 4, 5, 2, 3, 6, 7],
    "subsample": [0, 2, 1, 3, 4, 6, 5, 7],
}


@pytest.fixture(scope="module")
def eight():
    """Bits of two images of 2 x 4 tokens."""
    return jnp.asarray(np.random.default_rng(1).integers(0, 2, (2, 8, 4)), jnp.uint8)


@pytest.mark.parametrize("kind", ORDERS)
def test_trains_in_the_order_of_the_basis(key, eight, kind):
    """As `random` does whose draws make that order."""
    generator, run = ordered_loss(kind)
    draws = generator.draw(jax.random.split(key))
    places = jnp.tile(jnp.argsort(jnp.array(ORDERS[kind]))[None] / 8, (2, 1))
    _, random = ordered_loss("random")
    expected = random(eight, draws.replace(order_places=places), 1.0)
    np.testing.assert_allclose(run(eight, draws, 0.0), expected, rtol=1e-5)
    _, raster = ordered_loss("raster")
    assert (kind == "raster") == np.allclose(expected, raster(eight, draws, 0.0), rtol=1e-5)


def test_random_orders_are_annealed_to_raster(key, eight):
    """Example 0 draws below the share and has its own order; with a share of 0 none has."""
    generator, run = ordered_loss("random")
    draws = generator.draw(jax.random.split(key)).replace(order_choice=jnp.array([0.3, 0.6]))
    losses = {share: float(run(eight, draws, share)) for share in (0.0, 0.5, 1.0)}
    raster = draws.replace(order_places=jnp.tile(jnp.arange(8)[None] / 8, (2, 1)))
    assert losses[0.0] == pytest.approx(float(run(eight, raster, 1.0)), rel=1e-5)
    own = raster.replace(order_places=raster.order_places.at[0].set(draws.order_places[0]))
    assert losses[0.5] == pytest.approx(float(run(eight, own, 1.0)), rel=1e-5)
    assert len(set(losses.values())) == 3


def test_samples_in_the_order_of_the_basis(key):
    """Each token lands in its place: as `sample_tokens` writes them in that order."""
    generator, _ = ordered_loss("cells")
    labels, keys = jnp.array([0, 3]), jax.random.split(key)
    request = Request(labels, keys, settings=Settings(guided=False, unmasking_schedule=(1, 3)))
    params = random_params(generator)
    found = jax.jit(generator.sample)(params, request)
    order = jnp.tile(jnp.array(ORDERS["cells"])[None], (2, 1))
    noise = token_noise(generator.head, keys, (1, 3))
    expected = sample_tokens(generator, params, request, order, noise)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_first_tokens_alone_are_those_of_the_whole(tokens, guidance_scale):
    """Of a sequence: guidance, noise and places are those of all of it, its cache is shorter."""
    trunk = make(1).trunk.copy(grid=(6,))
    generator = MaskedBitGenerator(trunk, make(1).head, (1, 6), basis=Basis("identity"))
    params, labels = random_params(generator), jnp.array([0, 3, 1])
    keys = jax.random.split(jax.random.key(5), 3)
    settings = Settings(guidance_scale > 1, SETTINGS[1][2])

    def bits(settings):
        request = Request(labels, keys, guidance_scale, 1.5, settings=settings)
        return jax.jit(generator.sample)(params, request)

    whole, part = bits(settings), bits(settings._replace(tokens=tokens))
    assert len(np.unique(np.asarray(whole).reshape(-1, 4), axis=0)) > 3
    np.testing.assert_array_equal(part, whole[:, :tokens])
