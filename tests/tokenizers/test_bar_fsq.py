"""Tests of bar_jax/tokenizers/bar_fsq.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from bar_jax.tokenizers.bar_fsq import BarFSQ
from bar_jax.tokenizers.fsq import BOUNDARY

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
        return tokens, rendered, *module.apply(params, images)

    tokens, rendered, reconstruction, codes = both_ways(params, images)
    assert tokens.shape == (2, 4, bits) and tokens.dtype == jnp.uint8
    np.testing.assert_array_equal(tokens, codes > 0)
    assert bits == 1 or set(np.unique(tokens)) == {0, 1}
    assert rendered.shape == images.shape and rendered.dtype == jnp.float32
    np.testing.assert_allclose(rendered, reconstruction, atol=1e-5)


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
    module = tokenizer(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(module.apply, filled(module), images)
    assert {s.dtype for s in shapes} == {np.dtype(np.float32)}
