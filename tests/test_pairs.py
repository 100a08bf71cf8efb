"""Choices that validation lets through together can be trained and sampled: pairs of them, traced.

Each config has random values of all fields, as far as validation takes them, so that it has some
hundred pairs.
"""

import random

import pytest

from bar_jax import bases, jobs
from bar_jax.config import default_config
from bar_jax.config.presets import tiny
from bar_jax.config.validation import CHOICES, validate
from bar_jax.generators.kind import written_width
from bar_jax.runtime.errors import InputError
from tests import tracing

pytestmark = pytest.mark.slow
CONFIGS = 7
PARTS = ("tokenizer", "generator", "head")
# Parts that go together; each config has one of these.
KINDS = [
    {f"model.{part}.kind": kind for part, kind in zip(PARTS, kinds, strict=True)}
    for kinds in (
        ("bar_fsq", "causal", "masked_bit"),
        ("basis_fsq", "causal", "masked_bit"),
        ("kl_vae", "xar", "flow"),
        ("pixels", "mar", "diffusion"),
        ("bar_fsq", "causal", "bit"),
        ("pixels", "causal", "diffusion"),
        ("basis_fsq", "causal", "linear"),
    )
]
MADE_HERE = ("model.", "sample.", "dtype", "encode.dtype")
FIELDS = {name: choices for name, choices in CHOICES.items() if name.startswith(MADE_HERE)}
FIELDS |= {
    "model.basis.kind": (*bases.kinds_to_start_from(), bases.RANDOM, bases.LEARNED),
    "model.basis.init": bases.kinds_to_start_from(),
    "model.basis.block": (2, 4),
    "model.basis.rows": (0, 5),
    "model.basis.snr_clip": (0.0, 5.0),
    "model.basis.gains": (False, True),
    "model.generator.shared_time": (False, True),
    "model.generator.patch_size": (1, 2),
    "model.generator.cell_size": (1, 2, 4),
    "model.generator.class_repeats": (1, 3),
    "model.generator.dropout": (0.0, 0.1),
    "model.generator.attention_dropout": (0.0, 0.1),
    "model.tokenizer.decoder.predictor_width": (0, 8),
    "model.tokenizer.encoder.position_grid": (0, 3),
    "train_generator.accumulate": (1, 2),
    "train_generator.remat": (False, True),
    "train_tokenizer.remat": (False, True),
    "train_tokenizer.accumulate": (1, 2),
    "train_tokenizer.ema_decay": (0.0, 0.9),
    "sample.guidance_scale": (1.0, 3.0),
    "sample.tokens": (0, 3),
    "sample.steps": (1, 4),
    "sample.iterations": (1, 4),
}


def _config(values):
    """The tiny config with these values, and with sizes that these need."""
    config = tiny(default_config())
    config.model.tokenizer.decoder.predictor_layer = 0
    parts = config.model.generator, config.model.tokenizer.encoder, config.model.tokenizer.decoder
    for part in parts:
        part.depth = 1
    config.update_from_flattened_dict(values)
    if config.model.head.kind == "linear":  # the others take any number of bits
        config.model.tokenizer.bits = 4
    if config.model.tokenizer.kind == "basis_fsq":
        config.model.generator.rope = "1d"
    if config.model.basis.objective == "residual":
        config.model.generator.shared_time = True
    config.sample.unmasking_schedule = (written_width(config),)
    return config


def _drawn(number: int):
    """A config of random values; one that validation refuses is drawn again."""
    rng = random.Random(number)
    values = {name: rng.choice(choices) for name, choices in FIELDS.items()}
    values |= KINDS[number % len(KINDS)]
    while True:
        try:
            config = _config(values)
            validate(config)
            jobs.check_devices(config)
            return config
        except InputError as error:
            refused = str(error).partition(":")[0]
            values[refused] = rng.choice(FIELDS[refused])


@pytest.mark.parametrize(
    "number",
    [n if n == 3 else pytest.param(n, marks=pytest.mark.exhaustive) for n in range(CONFIGS)],
)
def test_what_validation_lets_through_can_be_traced(number):
    tracing.trace(_drawn(number))


def test_one_dimensional_positions_go_with_tokens_of_a_grid():
    tracing.trace(_config({"model.generator.rope": "1d"}))
