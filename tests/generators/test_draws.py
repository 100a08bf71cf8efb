"""Draws of a training step are independent: no two of them come from the same random number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.config_file import load_config
from bar_jax.generators import make_generator

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
