"""Tests of bar_jax/jobs/describe.py."""

import json
import math

import jax
import jax.numpy as jnp
import pytest
from jax.interpreters import partial_eval

from bar_jax.config import default_config
from bar_jax.config.presets import tiny
from bar_jax.generators import make_generator
from bar_jax.generators.masked_bit import sample_tokens
from bar_jax.generators.request import Request
from bar_jax.generators.settings import Settings
from bar_jax.inspection.model_flops import sampling_flops, training_flops
from bar_jax.jobs import describe
from bar_jax.runtime.mesh import make_mesh
from bar_jax.tokenizers import make_tokenizer
from bar_jax.training import restore
from bar_jax.training.generator import make_loss_fn
from bar_jax.training.optimizer import Durations, from_section
from bar_jax.training.step import Keys, fresh_state, init_state

LAYOUT = dict(data=2, fsdp=2, tensor=2)


def _config(**changes):
    config = tiny(default_config())
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    config.mesh.update(LAYOUT)
    return config


@pytest.fixture(scope="module")
def described():
    return describe.run(_config(train_generator__ema_decay=0.9))


def _products(jaxpr) -> int:
    """Operations of all matrix products in a traced program, loops counted as often as they run."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            ((contracted, _), _) = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            products = math.prod(eqn.outvars[0].aval.shape)
            total += 2 * products * math.prod(shape[axis] for axis in contracted)
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += times * _products(inner)
    return total


@pytest.mark.parametrize(
    "head, guidance_scale, patch_size, schedule, batch",
    [
        ("masked_bit", 1.0, 1, (2, 2, 5, 7), 1),
        ("masked_bit", 3.0, 2, (10, 54), 1),
        ("masked_bit", 3.0, 1, (2, 2, 5, 7), 3),
        ("bit", 3.0, 2, (), 1),
        ("linear", 3.0, 1, (), 2),
    ],
)
def test_sampling_flops_are_those_of_the_sampler(head, guidance_scale, patch_size, schedule, batch):
    """Counted in the program that samples a batch."""
    config = _config(
        model__head__kind=head,
        sample__guidance_scale=guidance_scale,
        model__generator__patch_size=patch_size,
        sample__unmasking_schedule=schedule,
    )
    generator = make_generator(config)
    mesh = make_mesh(**LAYOUT)
    params = restore.param_shapes(lambda k: restore.init_generator(generator, k), mesh)
    length = generator.trunk.num_tokens

    settings = Settings(guided=guidance_scale > 1, unmasking_schedule=schedule)
    request = Request(jnp.zeros(batch, jnp.int32), None, guidance_scale, settings=settings)
    order = jnp.tile(jnp.arange(length), (batch, 1))
    noise = lambda i: jnp.full((batch, *generator.head.noise_shape(schedule)), 0.5)
    program = lambda params: sample_tokens(generator, params, request, order, noise)
    jaxpr = jax.make_jaxpr(program)(params).jaxpr
    # Without what the compiler drops: the prefix's outputs, of which nothing is drawn.
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    assert sum(sampling_flops(config, params, batch).values()) == _products(jaxpr)


@pytest.mark.parametrize("head, patch_size", [("masked_bit", 1), ("bit", 2)])
def test_training_flops_are_three_times_those_of_the_loss(head, patch_size):
    """Counted in the program of the loss of one image."""
    config = _config(model__head__kind=head, model__generator__patch_size=patch_size)
    generator = make_generator(config)
    params = restore.param_shapes(
        lambda k: restore.init_generator(generator, k), make_mesh(**LAYOUT)
    )
    loss = make_loss_fn(generator, make_tokenizer(config), 0, 0)
    batch = {"tokens": jnp.zeros((1, 16, 16), jnp.uint8), "label": jnp.zeros(1, jnp.int32)}
    key = jax.random.key(0)
    program = lambda params: loss(params, batch, Keys(key[None], key, 0))["loss"]  # noqa: E731
    jaxpr = jax.make_jaxpr(program)(params).jaxpr
    assert training_flops(config, params) == 3 * _products(jaxpr)


def test_parameters_are_those_of_the_models(described):
    config = _config()
    tokenizer, generator = make_tokenizer(config), make_generator(config)
    key = jax.random.key(0)
    arrays = (
        jax.eval_shape(lambda: restore.init_tokenizer(tokenizer, key)),
        jax.eval_shape(lambda: restore.init_generator(generator, key)),
    )
    totals = [sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) for tree in arrays]
    told = described["parameters"]
    assert [told["tokenizer_total"], told["generator_total"]] == totals


def test_parts_add_up(described):
    told = described["parameters"]
    sums = [sum(told[part].values()) for part in ("tokenizer", "generator")]
    assert sums == [told["tokenizer_total"], told["generator_total"]]


def test_sequence_of_the_tiny_config(described):
    """4 x 4 tokens of 16 bits, a start vector and two copies of the class."""
    names = ("tokens", "bits_per_token", "bit_budget", "generator_tokens", "sequence_length")
    assert [described[name] for name in names] == [16, 16, 256, 16, 19]


def test_an_encoder_that_starts_from_siglip2_has_frozen_parts(described):
    """The patch embedding (4 x 4 x 3 values to 16) and 16 positions, and copies that only help."""
    told = describe.run(_config(model__tokenizer__encoder__kind="siglip2"))["parameters"]
    own = described["parameters"]["tokenizer_total"]
    embeddings = (4 * 4 * 3 + 1) * 16 + 16 * 16
    assert told["tokenizer_frozen_embeddings"] == embeddings
    assert told["tokenizer_trainable"] == own - embeddings
    copies = told["tokenizer_alignment_target"] + told["tokenizer_pooling_head"]
    assert told["tokenizer_total"] == own + copies
    assert described["parameters"]["tokenizer_trainable"] == own


@pytest.mark.parametrize("part", ["tokenizer", "generator"])
def test_state_bytes_are_those_of_a_real_state(described, part):
    """Of the largest device: parameters, moments, moving average and a few counters."""
    config = _config(train_generator__ema_decay=0.9)
    section, mesh = config[f"train_{part}"], make_mesh(**LAYOUT)
    module = {"tokenizer": make_tokenizer, "generator": make_generator}[part](config)
    init = {
        "tokenizer": lambda k: restore.init_tokenizer(module, k),
        "generator": lambda k: restore.init_generator(module, k),
    }[part]
    tx, _ = from_section(section.optimizer, Durations(2, 1))
    _, shapes = init_state(
        lambda k: fresh_state(init(k), tx, section.ema_decay > 0), jax.random.key(0), mesh
    )
    arrays = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype, device=s.sharding), shapes)
    device = jax.devices()[0]
    held = sum(
        shard.data.nbytes
        for array in jax.tree.leaves(arrays)
        for shard in array.addressable_shards
        if shard.device == device
    )
    assert described["state_bytes_per_device"][part] == held


def test_prints_as_json(described):
    assert json.loads(json.dumps(described)) == described
