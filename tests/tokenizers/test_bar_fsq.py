"""Tests of bar_jax/tokenizers/bar_fsq.py."""

import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from bar_jax.config import default_config
from bar_jax.tokenizers import make_tokenizer
from bar_jax.tokenizers.bar_fsq import BarFSQ, parameter_group
from bar_jax.tokenizers.fsq import BOUNDARY
from bar_jax.training import restore

SIZES = {"width": 8, "depth": 2, "heads": 2, "mlp_width": 16}
WIDER = SIZES | {"width": 12}


def tokenizer(bits=10, **changes):
    return BarFSQ(8, 4, bits, encoder=SIZES, decoder=WIDER, **changes)


def filled(module):
    """Random parameters, with the quantiser's bias where both bits occur."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: rng.normal(size=s.shape).astype(np.float32) / 2, meta.unbox(shapes)
    )
    params["params"]["quantizer"]["in_proj"]["bias"][:] = BOUNDARY
    return params


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)


@pytest.mark.parametrize("bits", [1, 10, 64, 256])
def test_decoding_the_encoded_bits_is_the_reconstruction(images, bits):
    module = tokenizer(bits)
    params = filled(module)

    @jax.jit
    def both_ways(params, images):
        tokens = module.apply(params, images, method=module.encode)
        rendered = module.apply(params, tokens, method=module.decode)
        return tokens, rendered, module.apply(params, images)

    tokens, rendered, (reconstruction, codes, predicted) = both_ways(params, images)
    assert tokens.shape == (2, 4, bits) and tokens.dtype == jnp.uint8
    np.testing.assert_array_equal(tokens, codes > 0)
    assert bits == 1 or set(np.unique(tokens)) == {0, 1}
    assert rendered.shape == images.shape and rendered.dtype == jnp.float32
    np.testing.assert_allclose(rendered, reconstruction, atol=1e-5)
    assert predicted is None


def gradient_of_l2(module, images):
    loss = lambda params: jnp.mean((module.apply(params, images)[0] - images) ** 2)  # noqa: E731
    return jax.jit(jax.grad(loss))(filled(module))


@pytest.fixture(scope="module")
def gradient(images):
    return gradient_of_l2(tokenizer(), images)


def test_every_parameter_gets_a_gradient(gradient):
    """The straight-through estimator carries it to the encoder."""
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    assert not [jax.tree_util.keystr(path) for path, leaf in leaves if not np.any(leaf)]


def test_remat_gives_the_same_gradient(images, gradient):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        gradient_of_l2(tokenizer(remat=True), images),
        gradient,
    )


def test_computes_in_bfloat16_and_returns_float32(images):
    module = tokenizer(dtype=jnp.bfloat16, predictor_width=4)
    shapes = jax.eval_shape(module.apply, filled(module), images)
    assert [s.dtype for s in shapes] == [np.dtype(np.float32)] * 3


# --- feature predictor ---------------------------------------------------------------------------


def test_predicts_from_the_output_of_its_layer(images):
    """Layer 0 alone decides; a sum of the predictions moves nothing of layer 1."""
    module = tokenizer(predictor_layer=0, predictor_width=4)
    params = filled(module)
    total = lambda params: jnp.sum(module.apply(params, images).predicted_features)  # noqa: E731
    gradient = jax.jit(jax.grad(total))(params)["params"]["decoder_vit"]
    kernel = gradient["blocks"]["mlp"]["up"]["kernel"]
    assert np.any(kernel[0]) and not np.any(kernel[1])
    assert not np.any(gradient["norm"]["scale"])
    predicted = jax.eval_shape(module.apply, params, images).predicted_features
    assert predicted.shape == (2, 4, SIZES["width"])  # of the encoder; no class position


def test_nothing_but_training_needs_the_predictor(images):
    """The same numbers, whether or not there is one."""
    module = tokenizer(predictor_layer=1, predictor_width=4)
    params = filled(module)
    without = {"params": {k: v for k, v in params["params"].items() if k != "feature_predictor"}}

    def run(module):
        @jax.jit
        def both(params):
            bits = module.apply(params, images, method="encode")
            return bits, module.apply(params, bits, method="decode")

        return both(without)

    for found, expected in zip(run(module), run(tokenizer()), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


# --- positions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 16])
def test_a_stored_table_of_positions_serves_any_resolution(size):
    """The encoder's parameters are the same at every size; a constant table stays constant."""
    sizes = {"encoder": SIZES, "decoder": WIDER}
    module = BarFSQ(size, 4, 10, **sizes, position_grid=3)
    pixels = np.random.default_rng(2).uniform(-1, 1, (1, size, size, 3)).astype(np.float32)
    shapes = meta.unbox(jax.eval_shape(module.init, jax.random.key(0), pixels))["params"]
    assert shapes["encoder_vit"]["position_embedding"].shape == (9, SIZES["width"])
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    constant = np.tile(params["encoder_vit"]["position_embedding"][:1], (9, 1))
    params["encoder_vit"]["position_embedding"] = constant
    own = BarFSQ(size, 4, 10, **sizes)
    tokens = (size // 4) ** 2
    table = {"position_embedding": np.tile(constant[:1], (tokens, 1))}
    plain = params | {"encoder_vit": params["encoder_vit"] | table}
    features = lambda module, p: module.apply({"params": p}, pixels, method="features")  # noqa: E731
    np.testing.assert_allclose(features(module, params), features(own, plain), atol=1e-5)


# --- groups --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits, size, quantizer, decoder", [
    (16, 256, 35_856, 312_020_948),
    (10, 512, 22_794, 312_807_380),
])  # fmt: skip
def test_every_parameter_has_a_group(bits, size, quantizer, decoder):
    """Of the published models, whose counts are those of the published code."""
    config = default_config()
    config.data.image_size, config.model.tokenizer.bits = size, bits
    init = lambda key: restore.init_tokenizer(make_tokenizer(config), key)  # noqa: E731
    shapes = meta.unbox(jax.eval_shape(init, jax.random.key(0)))
    counts = collections.Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        counts[parameter_group(tuple(key.key for key in path))] += math.prod(leaf.shape)
    assert counts == {
        "embeddings": 1_180_800,
        "encoder": 411_468_912,
        "quantizer": quantizer,
        "decoder": decoder,
    }


def test_an_unknown_parameter_has_none():
    with pytest.raises(KeyError):
        parameter_group(("discriminator", "kernel"))
