"""Generators, and a tokenizer, in layouts of eight devices: gradients and samples are one device's.

Those of the parts are tested with them; tests/runtime/test_mesh.py trains for many steps.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.config.file import load_config
from bar_jax.generators import make_generator, sampling_settings
from bar_jax.generators.request import Request
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.tokenizers import make_tokenizer
from bar_jax.training import restore
from bar_jax.training.step import Keys
from bar_jax.training.tokenizer import make_loss_fn

pytestmark = pytest.mark.slow
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
BATCH = 8
LAYOUTS = [(2, 2, 2)]


def config_of(name):
    config = load_config(f"{CONFIGS / name}.py:tiny")
    config.dtype = "float32"
    config.model.generator.update(dict(width=32, heads=2))
    config.sample.update(dict(guidance_scale=2.0, steps=3))
    return config


@functools.cache
def found(name, layout):
    """Gradients [all parameters] of one step, and samples [B, N, k], of a config's generator."""
    config = config_of(name)
    generator = make_generator(config)
    devices = jax.devices()[: int(np.prod(layout))]
    mesh = mesh_lib.make_mesh(*layout, devices=devices)
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(BATCH, *generator.token_shape))
    if generator.token_dtype == jnp.uint8:
        tokens = tokens > 0
    labels = np.arange(BATCH, dtype=np.int32)
    batch = {"tokens": tokens.astype(generator.token_dtype), "label": labels}

    def gradients(params, batch, keys):
        def loss(params):
            sums = generator.apply(
                {"params": params}, batch["tokens"], batch["label"], generator.draw(keys), 0.5,
                deterministic=True, method=generator.loss,
            )  # fmt: skip
            total, count = sums["loss"]
            return total / count

        return jax.grad(loss)(params)

    def draw(params, labels, keys):
        scale, settings = jnp.float32(config.sample.guidance_scale), sampling_settings(config)
        return generator.sample(params, Request(labels, keys, scale, settings=settings))

    with jax.set_mesh(mesh):
        init = lambda key: restore.init_generator(generator, key)
        params = restore.fresh_params(init, mesh, seed=0)
        batch, keys = mesh_lib.put_batch(mesh, batch), jax.random.split(jax.random.key(1), BATCH)
        leaves = jax.tree.leaves(jax.device_get(jax.jit(gradients)(params, batch, keys)))
        samples = jax.device_get(jax.jit(draw)(params, batch["label"], keys))
    return np.concatenate([leaf.ravel() for leaf in leaves]), samples


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("basis/causal_b", marks=pytest.mark.exhaustive),
        pytest.param("basis/xar_b", marks=pytest.mark.exhaustive),
        pytest.param("basis/mar_b", marks=pytest.mark.exhaustive),
    ],
)
def test_gradients_and_samples_do_not_depend_on_the_layout(name, layout):
    gradient, samples = found(name, layout)
    expected, drawn = found(name, (1, 1, 1))
    assert np.linalg.norm(gradient - expected) < 1e-5 * np.linalg.norm(expected)
    # A sampler's rounding grows with its steps.
    np.testing.assert_allclose(samples, drawn, atol=1e-3 * np.abs(drawn).max())


@functools.cache
def tokenizer_gradient(layout):
    """Gradient [all parameters] of a step of the tokenizer with a basis inside."""
    config = config_of("unified/digits")
    config.train_tokenizer.batch_size = BATCH
    tokenizer = make_tokenizer(config)
    mesh = mesh_lib.make_mesh(*layout, devices=jax.devices()[: int(np.prod(layout))])
    key = jax.random.key(1)
    loss_fn = make_loss_fn(tokenizer, None, config.train_tokenizer, key, regularizer=1.0)
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 16, 16, 3), np.uint8)

    def gradients(params, batch, keys):
        loss = lambda params: loss_fn(params, batch, Keys(keys, key, 0), None)["loss"][0]
        return jax.grad(loss)(params)

    with jax.set_mesh(mesh):
        init = lambda key: restore.init_tokenizer(tokenizer, key)
        params = restore.fresh_params(init, mesh, seed=0)
        batch = mesh_lib.put_batch(mesh, {"image": images})
        found = jax.jit(gradients)(params, batch, jax.random.split(key, BATCH))
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(jax.device_get(found))])


@pytest.mark.exhaustive
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_basis_inside_the_tokenizer_does_not_depend_on_the_layout(layout):
    gradient, expected = tokenizer_gradient(layout), tokenizer_gradient((1, 1, 1))
    assert np.linalg.norm(gradient - expected) < 1e-5 * np.linalg.norm(expected)
