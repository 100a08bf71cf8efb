"""Tests of bar_jax/config/validation.py."""

import math

import pytest

from bar_jax.config import default_config, flatten
from bar_jax.config.presets import tiny
from bar_jax.config.validation import CHOICES, validate
from bar_jax.runtime.errors import InputError

NAN, INF = math.nan, math.inf


def _tiny(**changes):
    """The tiny config with fields changed: names with `__` for a dot."""
    config = tiny(default_config())
    names = {name.replace("__", "."): value for name, value in changes.items()}
    config.update_from_flattened_dict(names)
    return config


MAR = {"model__generator__kind": "mar", "model__head__kind": "diffusion"}
CAUSAL = {"model__generator__kind": "causal", "model__head__kind": "diffusion"}


def _xar(**changes):
    """The same, of xAR on the pixels' learned basis."""
    kinds = {"tokenizer": "pixels", "basis": "learned", "generator": "xar", "head": "flow"}
    fields = {f"model__{part}__kind": kind for part, kind in kinds.items()}
    return _tiny(**fields | {"model__generator__shared_time": True} | changes)


def test_defaults_are_valid():
    validate(default_config())


def test_tiny_is_valid():
    validate(tiny(default_config()))


BASIS = {"model__tokenizer__kind": "basis_fsq", "model__generator__rope": "1d"}
BASIS |= {"model__basis__kind": "frequency"}


# (changes to the tiny config, field named, what was found, part of what was expected)
WRONG = [
    (BASIS | {"sample__tokens": 17}, "sample.tokens", "17", "1 to 16, the tokens of an image"),
    (BASIS | {"sample__tokens": -1}, "sample.tokens", "-1", "at least 0"),
    ({"sample__tokens": 4}, "sample.tokens", "4", "or model.tokenizer.kind=basis_fsq"),
    (
        BASIS | {"model__generator__rope": "2d"},
        "model.generator.rope",
        "'2d'",
        "'1d': basis tokens have no place in the image",
    ),
    (BASIS | {"model__generator__patch_size": 2}, "model.generator.patch_size", "2", "1: basis"),
    (BASIS | {"sample__keep": "upper"}, "sample.keep", "'upper'", "'none': basis tokens"),
    (BASIS | {"sample__order": "random"}, "sample.order", "'random'", "'basis': basis tokens"),
    (
        BASIS | {"data__source": "tokens"},
        "model.tokenizer.kind",
        "'basis_fsq' with data.source=tokens",
        "of bar_fsq",
    ),
    (
        BASIS | {"model__basis__kind": "random"},
        "model.basis.kind",
        "'random' for causal and the tokens of basis_fsq",
        "frequency |",
    ),
    (
        BASIS | {"model__basis__kind": "scales", "data__image_size": 12},
        "model.basis.kind",
        "'scales' on 3 x 3 tokens",
        "a power of two",
    ),
    (
        {"train_tokenizer__loss__prefix": 0.1},
        "train_tokenizer.loss.prefix",
        "0.1",
        "0, or model.tokenizer.kind=basis_fsq",
    ),
    (
        {"train_tokenizer__loss__residual": 0.1},
        "train_tokenizer.loss.residual",
        "0.1",
        "0, or model.tokenizer.kind=basis_fsq",
    ),
    ({"dtype": "float16"}, "dtype", "'float16'", "float32 | bfloat16"),
    (
        {"model__tokenizer__kind": "pixels", "job": "train_tokenizer"},
        "model.tokenizer.kind",
        "'pixels'",
        "'bar_fsq' to train: patches have nothing to train",
    ),
    (
        {"model__tokenizer__kind": "kl_vae", "job": "train_tokenizer"},
        "model.tokenizer.kind",
        "'kl_vae'",
        "job=import_weights reads them",
    ),
    (
        {
            "model__tokenizer__kind": "pixels",
            "job": "benchmark",
            "benchmark__parts": ("tokenizer_training",),
        },
        "model.tokenizer.kind",
        "'pixels'",
        "'bar_fsq' to train",
    ),
    (
        {"model__tokenizer__kind": "pixels", "data__source": "tokens"},
        "model.tokenizer.kind",
        "'pixels' with data.source=tokens",
        "bar_fsq | kl_vae",
    ),
    (
        {"model__tokenizer__kind": "kl_vae", "model__tokenizer__kl__width": 48},
        "model.tokenizer.kl.width",
        "48",
        "a multiple of 32",
    ),
    (
        {"model__tokenizer__kind": "kl_vae", "model__tokenizer__patch_size": 2},
        "model.tokenizer.patch_size",
        "2",
        "4: the 3 model.tokenizer.kl.multipliers halve that far",
    ),
    (
        {"model__tokenizer__kind": "kl_vae", "model__tokenizer__kl__multipliers": (1, 0, 2)},
        "model.tokenizer.kl.multipliers",
        "(1, 0, 2)",
        "positive integers",
    ),
    (
        {"model__tokenizer__kind": "kl_vae", "model__tokenizer__kl__scale": 0.0},
        "model.tokenizer.kl.scale",
        "0.0",
        "a positive number",
    ),
    (
        {"model__tokenizer__kind": "kl_vae", "data__image_size": 18},
        "model.tokenizer.patch_size",
        "4",
        "a divisor of data.image_size=18",
    ),
    ({"data__source": "mnist"}, "data.source", "'mnist'", "digits | folder | tfds"),
    ({"data__crop": "none"}, "data.crop", "'none'", "random | center | adm"),
    ({"data__on_damaged": "ignore"}, "data.on_damaged", "'ignore'", "skip | refuse"),
    ({"data__num_workers": -1}, "data.num_workers", "-1", "at least 0"),
    ({"model__tokenizer__kind": "vq"}, "model.tokenizer.kind", "'vq'", "bar_fsq"),
    ({"model__generator__kind": "mlp"}, "model.generator.kind", "'mlp'", "causal"),
    ({"model__head__kind": "bits"}, "model.head.kind", "'bits'", "masked_bit"),
    ({"model__head__mask_ratio": "x"}, "model.head.mask_ratio", "'x'", "logit_normal | uniform"),
    ({"sample__weights": "int4"}, "sample.weights", "'int4'", "float32 | bfloat16 | int8"),
    ({"sample__order": "snake"}, "sample.order", "'snake'", "basis | random"),
    ({"sample__keep": "middle"}, "sample.keep", "'middle'", "none | upper | lower | left | right"),
    ({"seed": -1}, "seed", "-1", "from 0 to 2^32 - 1"),
    ({"seed": 2**32}, "seed", "4294967296", "from 0 to 2^32 - 1"),
    ({"data__image_size": 0}, "data.image_size", "0", "at least 1"),
    ({"data__num_classes": 0}, "data.num_classes", "0", "at least 1"),
    ({"model__tokenizer__bits": 0}, "model.tokenizer.bits", "0", "at least 1"),
    ({"model__generator__depth": -2}, "model.generator.depth", "-2", "at least 1"),
    ({"model__generator__heads": 0}, "model.generator.heads", "0", "at least 1"),
    ({"encode__shards": 0}, "encode.shards", "0", "at least 1"),
    ({"sample__batch_size": 0}, "sample.batch_size", "0", "at least 1"),
    ({"sample__images_per_class": 0}, "sample.images_per_class", "0", "at least 1"),
    ({"train_generator__log_every": 0}, "train_generator.log_every", "0", "at least 1"),
    ({"train_generator__save_minutes": NAN}, "train_generator.save_minutes", "nan", "at least 0"),
    ({"train_tokenizer__keep_checkpoints": 0}, "train_tokenizer.keep_checkpoints", "0", "at least"),
    ({"model__generator__dropout": 1.0}, "model.generator.dropout", "1.0", "[0, 1)"),
    ({"model__generator__label_dropout": NAN}, "model.generator.label_dropout", "nan", "[0, 1)"),
    ({"train_generator__ema_decay": -0.1}, "train_generator.ema_decay", "-0.1", "[0, 1)"),
    ({"train_generator__optimizer__b1": 2.0}, "train_generator.optimizer.b1", "2.0", "[0, 1)"),
    ({"train_generator__optimizer__b2": NAN}, "train_generator.optimizer.b2", "nan", "[0, 1)"),
    (
        {"train_tokenizer__optimizer__learning_rate": -1e-3},
        "train_tokenizer.optimizer.learning_rate",
        "-0.001",
        "at least 0",
    ),
    (
        {"train_generator__optimizer__end_learning_rate": INF},
        "train_generator.optimizer.end_learning_rate",
        "inf",
        "at least 0",
    ),
    (
        {"train_generator__optimizer__weight_decay": NAN},
        "train_generator.optimizer.weight_decay",
        "nan",
        "at least 0",
    ),
    ({"train_tokenizer__loss__gram": NAN}, "train_tokenizer.loss.gram", "nan", "at least 0"),
    ({"train_tokenizer__stage": "half"}, "train_tokenizer.stage", "'half'", "decoder_finetune"),
    (
        {"train_tokenizer__stage": "decoder_finetune"},
        "init_from",
        "nothing",
        "the workdir of the tokenizer",
    ),
    (
        {"train_tokenizer__loss__alignment": 0.7},
        "model.tokenizer.encoder.kind",
        "'vit', which has no features to align with",
        "'siglip2', or train_tokenizer.loss.alignment=0",
    ),
    (
        {
            "train_tokenizer__loss__alignment": 0.7,
            "model__tokenizer__encoder__kind": "siglip2",
        },
        "model.tokenizer.decoder.predictor_width",
        "0, no predictor",
        "at least 1",
    ),
    (
        {"train_tokenizer__loss__gram": 1.0, "train_tokenizer__network_size": 31},
        "train_tokenizer.network_size",
        "31",
        "at least 32",
    ),
    (
        {"train_tokenizer__loss__lpips": 1.0, "data__image_size": 12},
        "data.image_size",
        "12",
        "at least 16 px",
    ),
    (
        {"train_tokenizer__loss__gan": 0.05, "train_tokenizer__network_size": 36},
        "train_tokenizer.network_size",
        "36",
        "a multiple of 8",
    ),
    (
        {"train_tokenizer__loss__gan": 0.05, "train_tokenizer__batch_size": 20},
        "train_tokenizer.batch_size",
        "20 images in a piece",
        "3 equal groups",
    ),
    (
        {"train_tokenizer__discriminator__optimizer__clip_norm": 0.0},
        "train_tokenizer.discriminator.optimizer.clip_norm",
        "0.0",
        "a positive number",
    ),
    (
        {"train_tokenizer__discriminator__start_steps": 5},
        "train_tokenizer.discriminator.start_steps",
        "start_steps=5, start_epochs=20.0",
        "the others 0",
    ),
    ({"train_tokenizer__loss__l1": -1.0}, "train_tokenizer.loss.l1", "-1.0", "at least 0"),
    (
        {"train_generator__optimizer__clip_norm": 0.0},
        "train_generator.optimizer.clip_norm",
        "0.0",
        "a positive number",
    ),
    (
        {"train_generator__accumulate": 3},
        "train_generator.accumulate",
        "3",
        "a divisor of train_generator.batch_size=16",
    ),
    (
        {"model__tokenizer__encoder__heads": 3},
        "model.tokenizer.encoder.heads",
        "3 heads at width 16",
        "divides the width",
    ),
    (
        {"model__tokenizer__decoder__heads": 5},
        "model.tokenizer.decoder.heads",
        "5 heads at width 16",
        "divides the width",
    ),
    (
        {"model__generator__heads": 3},
        "model.generator.heads",
        "3 heads at width 16",
        "divides the width",
    ),
    (
        {"model__generator__heads": 1},
        "model.generator.heads",
        "1 heads of 16 channels",
        "an even number of heads",
    ),
    (
        {"model__generator__heads": 8},
        "model.generator.heads",
        "8 heads of 2 channels",
        "a multiple of 4 channels",
    ),
    (
        {"model__tokenizer__patch_size": 5},
        "model.tokenizer.patch_size",
        "5",
        "a divisor of data.image_size=16",
    ),
    ({"model__generator__patch_size": 3}, "model.generator.patch_size", "3", "grid, 4 x 4"),
    ({"model__generator__class_repeats": 100}, "model.generator.class_repeats", "100", "1 to 99"),
    (
        {"train_generator__epochs": 3.0},
        "train_generator.steps",
        "steps=2, epochs=3.0",
        "the others 0",
    ),
    (
        {"train_tokenizer__optimizer__warmup_images": 3},
        "train_tokenizer.optimizer.warmup_steps",
        "warmup_steps=1, warmup_images=3",
        "the others 0",
    ),
    (
        {"model__generator__order__anneal_end_epochs": 1.0},
        "model.generator.order.anneal_end_steps",
        "anneal_end_steps=2, anneal_end_epochs=1.0",
        "the others 0",
    ),
    ({"sample__guidance_scale": -1.0}, "sample.guidance_scale", "-1.0", "at least 0"),
    ({"sample__guidance_scale": 1e39}, "sample.guidance_scale", "1e+39", "at least 0"),
    ({"sample__temperature": INF}, "sample.temperature", "inf", "at least 0"),
    (
        {"sample__unmasking_schedule": (2, 2, 5, 6)},
        "sample.unmasking_schedule",
        "(2, 2, 5, 6), which sums to 15",
        "sum to 16 bits",
    ),
    (
        {"sample__unmasking_schedule": (7, 5, 2, 2)},
        "sample.unmasking_schedule",
        "(7, 5, 2, 2), which sums to 16",
        "non-decreasing",
    ),
    (
        {"sample__unmasking_schedule": (0, 16)},
        "sample.unmasking_schedule",
        "(0, 16)",
        "positive",
    ),
    (
        {"model__generator__patch_size": 2},
        "sample.unmasking_schedule",
        "(2, 2, 5, 7), which sums to 16",
        "sum to 64 bits",
    ),
    (
        {"model__head__kind": "linear", "model__tokenizer__bits": 32},
        "model.head.kind",
        "linear at 32 bits per token",
        "16 x 2^32 weights would take 256 GiB, in training 1 TiB",
    ),
    (
        {"model__head__kind": "linear", "model__tokenizer__bits": 256},
        "model.head.kind",
        "linear at 256 bits per token",
        "would take 2^262 bytes, in training 2^264 bytes",
    ),
    ({"model__tokenizer__bits": 0}, "model.tokenizer.bits", "0", "at least 1"),
    (
        {"model__tokenizer__encoder__kind": "dino"},
        "model.tokenizer.encoder.kind",
        "'dino'",
        "siglip2 | vit",
    ),
    (
        {"model__tokenizer__encoder__position_grid": -1},
        "model.tokenizer.encoder.position_grid",
        "-1",
        "at least 0",
    ),
    (
        {"model__tokenizer__decoder__predictor_width": 8},
        "model.tokenizer.decoder.predictor_layer",
        "2",
        "0 to 1: the decoder has 2 layers",
    ),
    ({"model__head__kind": "softmax"}, "model.head.kind", "'softmax'", "masked_bit | bit | linear"),
    ({"sample__labels": (3, 10)}, "sample.labels", "10", "integers from 0 to 9"),
    ({"sample__labels": (-1,)}, "sample.labels", "-1", "integers from 0 to 9"),
    ({"sample__labels": (1.5,)}, "sample.labels", "1.5", "integers from 0 to 9"),
    ({"evaluate__metrics": ("fidd",)}, "evaluate.metrics", "'fidd'", "class_accuracy"),
]


@pytest.mark.parametrize(
    "changes, field, found, expected", WRONG, ids=[f"{w[1]}={w[2]}" for w in WRONG]
)
def test_validate_names_the_field(changes, field, found, expected):
    with pytest.raises(InputError) as error:
        validate(_tiny(**changes))
    where, _, rest = str(error.value).partition(": found ")
    told, _, wanted = rest.partition(", expected ")
    assert (where, told) == (field, found)
    assert expected in wanted


# The same, to a tiny config of real-valued tokens: 4 x 4 of 48 numbers, xAR in cells of 2 x 2.
WRONG_OF_HOSTS = [
    ({"model__basis__kind": "dct"}, "model.basis.kind", "'dct' for xar", "frequency"),
    ({"model__basis__init": "learned"}, "model.basis.init", "'learned' for xar", "identity"),
    ({"model__basis__init": "random"}, "model.basis.init", "'random' for xar", "identity"),
    ({"model__basis__delta": 1.0}, "model.basis.delta", "1.0", "[0, 1)"),
    ({"model__basis__delta": -0.1}, "model.basis.delta", "-0.1", "[0, 1)"),
    ({"model__basis__delta": NAN}, "model.basis.delta", "nan", "[0, 1)"),
    ({"model__basis__rows": -1}, "model.basis.rows", "-1", "at least 0"),
    ({"model__basis__snr_clip": -1.0}, "model.basis.snr_clip", "-1.0", "at least 0"),
    ({"model__basis__regularizer": INF}, "model.basis.regularizer", "inf", "at least 0"),
    ({"model__basis__projection": "svd"}, "model.basis.projection", "'svd'", "none | hard | soft"),
    ({"model__basis__objective": "mse"}, "model.basis.objective", "'mse'", "bar | residual"),
    ({"model__basis__inverse": "lu"}, "model.basis.inverse", "'lu'", "inverse | transpose"),
    (
        {"model__basis__kind": "scales"},
        "model.basis.kind",
        "'scales' with 21 rows for 16 tokens",
        "as many rows as tokens for xar; mar and causal take any number",
    ),
    (
        {"model__basis__kind": "compact"},
        "model.basis.kind",
        "'compact' with 4 rows for 16 tokens",
        "as many rows as tokens for xar",
    ),
    (
        {"model__basis__init": "compact"},
        "model.basis.kind",
        "'compact' with 4 rows for 16 tokens",
        "as many rows as tokens for xar",
    ),
    (
        {"model__basis__kind": "scales", "data__image_size": 24},
        "model.basis.kind",
        "'scales' on 6 x 6 tokens",
        "a power of two",
    ),
    (
        {"model__basis__kind": "haar", "data__image_size": 24},
        "model.basis.kind",
        "'haar' on 6 x 6 tokens",
        "a power of two",
    ),
    (
        {"model__basis__kind": "compact", "model__basis__rows": 17},
        "model.basis.rows",
        "17",
        "1 to 16, the number of tokens",
    ),
    (
        {"model__basis__kind": "cells", "model__basis__block": 3},
        "model.basis.block",
        "3",
        "a divisor of both sides of the (4, 4) tokens",
    ),
    (
        {"model__basis__init": "subsample", "model__basis__block": 3},
        "model.basis.block",
        "3",
        "a divisor of both sides",
    ),
    (
        {"model__basis__kind": "random"},
        "model.basis.kind",
        "'random'",
        "xar does not know where a token belongs; causal does",
    ),
    (
        {"model__basis__kind": "random", **MAR},
        "model.basis.kind",
        "'random'",
        "mar does not know where a token belongs",
    ),
    (
        {"model__generator__shared_time": False},
        "model.generator.shared_time",
        "False with model.basis.objective=residual",
        "or objective=bar",
    ),
    ({"model__generator__cell_size": 3}, "model.generator.cell_size", "3", "the grid, 4 x 4"),
    ({"model__generator__cell_size": 0}, "model.generator.cell_size", "0", "at least 1"),
    ({"model__generator__time": "normal"}, "model.generator.time", "'normal'", "uniform"),
    ({"sample__sampler": "heun"}, "sample.sampler", "'heun'", "euler_maruyama | euler"),
    ({"sample__attention": "flash"}, "sample.attention", "'flash'", "auto | xla | rows | cudnn"),
    ({"sample__steps": 0}, "sample.steps", "0", "at least 1"),
    ({"sample__iterations": 0}, "sample.iterations", "0", "at least 1"),
    ({"sample__iterations": 17, **MAR}, "sample.iterations", "17", "1 to 16, the tokens"),
    ({"sample__steps": 1001, **MAR}, "sample.steps", "1001", "1 to 1000, the noise levels"),
    ({"model__head__kind": "diffusion"}, "model.head.kind", "'diffusion' for xar", "flow"),
    ({**MAR, "model__head__kind": "flow"}, "model.head.kind", "'flow' for mar", "diffusion"),
    (
        {"model__tokenizer__kind": "bar_fsq"},
        "model.generator.kind",
        "'xar'",
        "causal: model.tokenizer.kind=bar_fsq makes bits",
    ),
    ({"sample__keep": "left"}, "sample.keep", "'left'", "model.tokenizer.kind=bar_fsq"),
]


@pytest.mark.parametrize(
    "changes, field, found, expected",
    WRONG_OF_HOSTS,
    ids=[f"{w[1]}={w[2]}" for w in WRONG_OF_HOSTS],
)
def test_validate_names_the_field_of_a_host(changes, field, found, expected):
    with pytest.raises(InputError) as error:
        validate(_xar(**changes))
    where, _, rest = str(error.value).partition(": found ")
    told, _, wanted = rest.partition(", expected ")
    assert (where, told.partition(" and the tokens of")[0]) == (field, found)
    assert expected in wanted


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__basis__kind": "cells", "model__generator__shared_time": False},
        {"model__basis__objective": "bar", "model__generator__shared_time": False},
        {"sample__steps": 1001},  # xAR's own, of no table
        {"model__basis__kind": "scales", **MAR},
        {"model__basis__kind": "compact", "model__basis__rows": 7, **CAUSAL},
        {"model__basis__kind": "random", **CAUSAL},
        {"model__basis__init": "haar", **CAUSAL},
    ],
    ids=str,
)
def test_hosts_and_bases_that_go_together(changes):
    validate(_xar(**changes))


@pytest.mark.parametrize("kind, bits", [("bit", 256), ("linear", 18)])
def test_other_heads_need_no_schedule(kind, bits):
    validate(_tiny(model__head__kind=kind, model__tokenizer__bits=bits))


@pytest.mark.parametrize("job", ["train_tokenizer", "reconstruct", "describe", "import_weights"])
def test_jobs_that_draw_nothing_need_no_schedule(job):
    """Bits of a tokenizer are set alone."""
    validate(_tiny(job=job, model__tokenizer__bits=64))


def test_every_choice_is_a_field():
    """A misspelt name in CHOICES would check nothing."""
    names = {name for name, _ in flatten(default_config())}
    assert set(CHOICES) <= names
