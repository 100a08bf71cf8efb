"""The configs hold the papers' numbers.

Of the masked-bit paper its Tables 6 and 7, of the basis paper Table 8; what these leave out is that
of the published code, as are xAR's and MAR's own recipes.
"""

from pathlib import Path

import pytest

from bar_jax.config import flatten
from bar_jax.config.file import load_config

ROOT = Path(__file__).resolve().parents[1]


def optimizer(stage, rate, end, betas, decay, clip, warmup):
    """Fields of a stage's `optimizer`."""
    names = ("learning_rate", "end_learning_rate", "b1", "b2", "weight_decay", "clip_norm")
    fields = zip((*names, "warmup_epochs"), (rate, end, *betas, decay, clip, warmup), strict=True)
    return {f"train_{stage}.optimizer.{name}": value for name, value in fields}


GENERATOR = {
    **optimizer("generator", 4e-4, 1e-5, (0.9, 0.96), 0.03, 1.0, 100),
    "train_generator.batch_size": 2048,
    "train_generator.epochs": 400,
    "train_generator.ema_decay": 0,
    "model.generator.order.anneal_start_epochs": 200,
    "model.generator.order.anneal_end_epochs": 300,
    "model.generator.label_dropout": 0.1,
    "model.generator.dropout": 0,
    "model.generator.attention_dropout": 0,  # as published, see configs/masked_bit/bar_l.py
    "model.generator.class_repeats": 32,
    "model.basis.kind": "random",
    "model.head.kind": "masked_bit",
    "model.head.mask_ratio": "logit_normal",
    "model.head.depth": 3,
    "model.head.width": 2048,
    "dtype": "bfloat16",
}
TOKENIZER = {
    **optimizer("tokenizer", 1e-4, 1e-5, (0.9, 0.999), 0, 1.0, 2),
    **optimizer("tokenizer.discriminator", 1e-4, 1e-5, (0.9, 0.999), 0, 1.0, 2),
    "train_tokenizer.batch_size": 256,
    "train_tokenizer.epochs": 40,
    "train_tokenizer.ema_decay": 0.999,
    "train_tokenizer.encoder_learning_rate": 0.1,
    "train_tokenizer.discriminator.start_epochs": 20,
    "train_tokenizer.loss.l1": 0.1,
    "train_tokenizer.loss.l2": 1.0,
    "train_tokenizer.loss.lpips": 1.0,
    "train_tokenizer.loss.convnext": 0.1,
    "train_tokenizer.loss.gram": 10.0,
    "train_tokenizer.loss.alignment": 0.7,
    "train_tokenizer.loss.gan": 0.05,
    "train_tokenizer.network_size": 224,
    "data.crop": "random",
    "data.mirror": True,
    "dtype": "bfloat16",
}
XAR = {
    **optimizer("generator", 4e-4, 1e-5, (0.9, 0.96), 0.02, 1.0, 100),
    "train_generator.batch_size": 2048,
    "train_generator.epochs": 800,
    "train_generator.ema_decay": 0.9999,
    "train_generator.optimizer.constant_epochs": 0,
    "model.tokenizer.kl.scale": 0.2325,
    "model.basis.kind": "learned",
    "model.basis.init": "identity",
    "model.basis.projection": "soft",
    "model.basis.delta": 0.5,
    "model.basis.objective": "residual",
    "model.basis.regularizer": 1.0,
    "model.generator.shared_time": True,
    "model.generator.dropout": 0.1,
    "model.generator.attention_dropout": 0.1,
    "model.generator.label_dropout": 0.1,
    "sample.sampler": "euler_maruyama",
    "sample.steps": 50,
    "sample.temperature": 1,
    "sample.guidance_scale": 2.7,
}
XAR_HOST = XAR | {
    "train_generator.optimizer.constant_epochs": 600,
    "model.basis.kind": "identity",
    "model.generator.shared_time": False,
    "model.generator.time": "logit_normal",
    "sample.steps": 40,
}
MAR = {
    **{name: value for name, value in XAR.items() if not name.startswith("sample")},
    **optimizer("generator", 8e-4, 0, (0.9, 0.95), 0.02, 3.0, 100),
    "train_generator.optimizer.constant_epochs": 800,
    "model.generator.class_repeats": 64,
    "model.generator.mask_ratio_min": 0.7,
    "model.head.timesteps_per_token": 4,
    "sample.iterations": 256,
    "sample.steps": 100,
    "sample.guidance_scale": 2.9,
}


def sampled(scale, temperature, *schedule):
    names = ("guidance_scale", "temperature", "unmasking_schedule")
    values = zip(names, (scale, temperature, schedule), strict=True)
    return {f"sample.{name}": value for name, value in values}


LARGE = {"model.generator.dropout": 0.2}
PUBLISHED = {
    "masked_bit/bar_b": GENERATOR | sampled(5.0, 2.5, 2, 2, 5, 7),
    "masked_bit/bar_b_2": GENERATOR | sampled(5.5, 2.0, 16, 16, 16, 16),
    "masked_bit/bar_b_4": GENERATOR | sampled(9.6, 1.4, 64, 64, 64, 64),
    "masked_bit/bar_l": GENERATOR | LARGE | sampled(5.3, 3.0, 2, 2, 5, 7),
    "masked_bit/bar_l_512": {
        **(GENERATOR | LARGE | sampled(4.2, 2.8, 2, 2, 2, 4)),
        "train_generator.epochs": 200,
        "train_generator.optimizer.warmup_epochs": 50,
        "model.generator.order.anneal_start_epochs": 100,
        "model.generator.order.anneal_end_epochs": 150,
    },
    "tokenizer/bar_fsq": TOKENIZER | {"train_tokenizer.stage": "full"},
    "tokenizer/bar_fsq_ft": TOKENIZER | {"train_tokenizer.stage": "decoder_finetune"},
    "tokenizer/bar_fsq_512": TOKENIZER,
    "basis/xar_b": XAR,
    "basis/xar_l": XAR | {"sample.guidance_scale": 2.3},
    "basis/xar_h": XAR | {"sample.guidance_scale": 2.2},
    "basis/xar_b_host": XAR_HOST,
    "basis/xar_l_host": XAR_HOST | {"sample.guidance_scale": 2.3, "sample.steps": 50},
    "basis/xar_h_host": XAR_HOST | {"sample.guidance_scale": 2.2, "sample.steps": 50},
    "basis/mar_b": MAR,
    "basis/mar_l": MAR | {"sample.guidance_scale": 3.0},
    "basis/mar_h": MAR | {"sample.guidance_scale": 3.2},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_are_the_published_ones(name):
    found = dict(flatten(load_config(f"{ROOT}/configs/{name}.py")))
    expected = PUBLISHED[name]
    assert {field: found[field] for field in expected} == expected
