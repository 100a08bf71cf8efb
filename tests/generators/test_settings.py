"""Tests of bar_jax/generators/settings.py."""

import jax
import jax.numpy as jnp
import pytest
from flax.core import meta

from bar_jax import jobs
from bar_jax.config.file import load_config
from bar_jax.generators import causal, make_generator, sampling_settings, xar_sampler
from bar_jax.generators.request import Request
from bar_jax.nn.decode_attention import empty_cache
from bar_jax.runtime.errors import InputError
from bar_jax.training import restore


def _config(name, attention):
    config = load_config(f"configs/{name}.py:tiny")
    config.sample.attention = attention
    return config


@pytest.mark.parametrize(
    "name, kind",
    [("masked_bit/bar_b", "rows"), ("basis/causal_b", "pallas"), ("basis/xar_b", "cudnn")],
)
def test_caches_are_those_of_the_settings(name, kind, monkeypatch):
    """Of all layers, down to the sampler of each generator; nothing is compiled."""
    made = []

    def spy(kind, *sizes):
        made.append(kind)
        return empty_cache("xla", *sizes)

    for module in (causal, xar_sampler):
        monkeypatch.setattr(module, "empty_cache", spy)
    generator, key = make_generator(_config(name, "auto")), jax.random.key(0)
    settings = sampling_settings(_config(name, "auto"))._replace(attention=kind)
    params = meta.unbox(jax.eval_shape(lambda: restore.init_generator(generator, key)))
    request = Request(jnp.array([0]), key[None], 2.0, settings=settings)
    jax.eval_shape(generator.sample, params, request)
    assert set(made) == {kind}


@pytest.mark.parametrize(
    "name, asked, platform, expected",
    [
        ("masked_bit/bar_b", "auto", None, "xla"),
        ("masked_bit/bar_b", "auto", "tpu", "rows"),
        ("masked_bit/bar_b", "rows", None, "rows"),
        ("basis/causal_b", "auto", "tpu", "rows"),
        ("basis/xar_b", "auto", "tpu", "xla"),
        ("basis/mar_b", "cudnn", None, "xla"),  # has no cache
    ],
)
def test_attention(name, asked, platform, expected):
    assert sampling_settings(_config(name, asked), platform).attention == expected


@pytest.mark.parametrize("job", ["sample", "train_generator"])
def test_attention_that_cannot_be_had_is_told_first(job):
    """Training would only find out when it comes to its first samples."""
    config = _config("masked_bit/bar_b", "pallas")
    config.job = job
    with pytest.raises(InputError, match="^sample.attention: found 'pallas' with devices of"):
        jobs.check_devices(config)
