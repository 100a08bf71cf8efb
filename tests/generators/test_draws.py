"""Draws are independent: no two of a training step or of a sample are of the same random number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.config.file import load_config
from bar_jax.generators import diffusion, make_generator, mar_sampler, masked_bit, sampling_settings
from bar_jax.generators.request import Request

COUNT = 400


def draws_of(file, **changes):
    config = load_config(f"configs/{file}.py:tiny")
    config.update_from_flattened_dict(changes)
    generator = make_generator(config)
    return jax.jit(generator.draw)(jax.random.split(jax.random.key(0), COUNT))


def columns(tree):
    """Every number that an example draws, [COUNT, numbers]."""
    return np.concatenate([np.reshape(x, (COUNT, -1)) for x in jax.tree.leaves(tree)], axis=1)


@pytest.mark.parametrize("head", ["masked_bit", "bit", "linear"])
def test_a_token_of_bits(head):
    """Label, kind of order, places, share of hidden bits, and which: all uniform, all different."""
    changes = {"model.head.kind": head, "model.head.mask_ratio": "uniform"}
    found = columns(draws_of("masked_bit/bar_b", **changes))
    for example in found[:20]:
        assert len(np.unique(example)) == example.size
    assert found.min() >= 0 and found.max() <= 1


def test_xar():
    """Label and order; times of the cells, sigmoids of normal numbers, and noise."""
    draws = draws_of("basis/xar_b", **{"model.generator.shared_time": False})
    time = draws.host.time
    host = jnp.log(time) - jnp.log1p(-time), draws.host.noise
    assert abs(correlations(columns((draws.replace(host=None), host)))).max() < 0.3


def test_mar():
    """Share of hidden tokens, order, times and noise of the head."""
    draws = draws_of("basis/mar_b_host")
    assert abs(correlations(columns(draws))).max() < 0.3


def correlations(found):
    """Of all pairs of numbers, 0 on the diagonal; 0.3 are six deviations of 400 independent ones.

    Places of an order are not independent: each is somewhere else than the others.
    """
    found = found[:, np.std(found, axis=0) > 0]
    return np.corrcoef(found.T) - np.eye(found.shape[1])


# --- sampling ------------------------------------------------------------------------------------

SAMPLERS = {
    "masked_bit/bar_b": masked_bit,
    "basis/causal_b": diffusion,
    "basis/mar_b_host": mar_sampler,
}


def given(file, monkeypatch):
    """What an image's tokens are drawn from: order and noise."""
    config = load_config(f"configs/{file}.py:tiny")
    config.model.basis.kind, config.sample.order = "raster", "random"
    generator = make_generator(config)
    host = getattr(generator, "host", generator)
    monkeypatch.setattr(SAMPLERS[file], "sample_tokens", lambda *given: given[-2:])
    keys = jax.random.split(jax.random.key(0), 1)
    request = Request(jnp.zeros(1, int), keys, 2.0, settings=sampling_settings(config))
    return host.sample({}, request)


@pytest.mark.parametrize("file", SAMPLERS)
def test_every_token_has_noise_of_its_own(file, monkeypatch):
    _, noise = given(file, monkeypatch)
    places = [jnp.zeros((1, 1), int)] if SAMPLERS[file] is mar_sampler else []
    drawn = [
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(noise(i, *places))]) for i in range(8)
    ]
    assert len(np.unique(drawn, axis=0)) == 8


def test_noise_of_bits_is_not_that_of_the_order(monkeypatch):
    monkeypatch.setattr(
        masked_bit.permutation, "draw_orders", lambda _, choice, places, order: places
    )
    order, noise = given("masked_bit/bar_b", monkeypatch)
    for i in range(order.shape[1]):
        assert np.mean(np.isin(order, noise(i))) < 0.2
