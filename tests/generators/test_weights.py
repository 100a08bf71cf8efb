"""Samplers with narrow weights: as with float32 ones that were rounded before."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from bar_jax.generators.request import Request
from bar_jax.generators.settings import Settings
from tests.generators import test_diffusion, test_mar, test_masked_bit, test_xar

pytestmark = pytest.mark.slow
BITS = jnp.zeros((1, 6, 4), jnp.uint8)
# module, tokens, settings. One image: with guidance the two rows that tiles are made for; xAR and
# MAR have more of them.
SAMPLERS = {
    "bits": (test_masked_bit.make(1), BITS, Settings(True, (1, 3))),
    "diffusion": (test_diffusion.HOST, jnp.zeros((1, 6, 3)), Settings(True, steps=3)),
    "xar": (test_xar.make(), jnp.zeros((1, 16, 3)), test_xar.SETTINGS),
    "mar": (
        test_mar.make(),
        jnp.zeros((1, test_mar.LENGTH, test_mar.CHANNELS)),
        Settings(True, iterations=4, steps=3),
    ),
}


@functools.cache
def params(name):
    """Random, of a size at which every layer matters and nothing overflows."""
    module, tokens, _ = SAMPLERS[name]
    key, label = jax.random.key(0), jnp.zeros(1, jnp.int32)
    init = functools.partial(module.init, method=module.initialize)
    shapes = meta.unbox(jax.eval_shape(init, key, tokens, label, key[None]))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32) / 4, shapes)


def rounded(params, weights, name="", inside=False):
    """Kernels of layers [depth, *in, *out] but adaLN's as `weights` keep them; the rest as it is.

    In numpy, with a scale for each output of each layer.
    """
    if not isinstance(params, dict):
        return params
    if not inside or name == "adaln" or "kernel" not in params:
        inside = inside or name.endswith("blocks")
        return {key: rounded(value, weights, key, inside) for key, value in params.items()}
    kernel, bias = params["kernel"], params["bias"]
    if weights == "bfloat16":
        narrow = kernel.astype(jnp.bfloat16).astype(np.float32)
    else:
        flat = kernel.reshape(len(kernel), -1, bias[0].size)
        scale = np.abs(flat).max(axis=1, keepdims=True) / 127
        narrow = (np.round(flat / scale) * scale).reshape(kernel.shape)
    return {"kernel": narrow, "bias": bias}


def sampler(name, weights):
    """params -> tokens of one image; compiles anew."""
    module, _, settings = SAMPLERS[name]
    settings = settings._replace(weights=weights)
    request = Request(jnp.array([1]), jax.random.key(3)[None], 3.0, 0.5, settings=settings)
    return jax.jit(lambda params: module.sample(params, request))


@pytest.mark.parametrize(
    "name, weights",
    [("bits", "int8"), pytest.param("diffusion", "bfloat16", marks=pytest.mark.exhaustive)],
)
def test_samples_are_those_of_rounded_kernels(name, weights):
    run, wide = sampler(name, weights), sampler(name, "float32")
    found = np.asarray(run(params(name)), np.float64)
    expected, unrounded = (
        np.asarray(wide(p), np.float64) for p in (rounded(params(name), weights), params(name))
    )
    if name == "bits":
        np.testing.assert_array_equal(found, expected)
    else:
        assert np.linalg.norm(found - expected) < 0.3 * np.linalg.norm(unrounded - expected)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_every_sampler_takes_every_value(name, weights):
    """Traced, not compiled: the layouts' numbers are tested in tests/nn/test_narrow.py."""
    _, tokens, _ = SAMPLERS[name]
    found = jax.eval_shape(sampler(name, weights), params(name))
    assert found.shape == tokens.shape
    assert found.dtype == tokens.dtype
