"""What is wrong with a value of a config, reported before anything is compiled."""

import math

from ml_collections import ConfigDict

from bar_jax import generators, heads, tokenizers
from bar_jax.config import FIELDS, duration, flatten, profiled_steps, token_grid
from bar_jax.config.validation_parts import validate_parts
from bar_jax.generators.kind import written_width
from bar_jax.runtime.arguments import check_heads_divide
from bar_jax.runtime.errors import InputError
from bar_jax.tokenizers import basis_inside, real_valued

# Kinds that their rooms have; other choices stand with their fields.
KINDS = {
    "model.tokenizer.kind": tokenizers.KINDS,
    "model.generator.kind": generators.KINDS,
    "model.head.kind": heads.KINDS,
}
CHOICES = {name: tuple(kinds) for name, kinds in KINDS.items()} | {  # of fields with one value
    name: tuple(field.choices)
    for name, field in FIELDS.items()
    if field.choices and field.type is str
}


def validate(config: ConfigDict) -> None:
    """Checks all that can be checked without data or devices.

    Raises:
      InputError: naming the first wrong field, what was found and what was expected.
    """
    fields = dict(flatten(config))
    for name, kinds in KINDS.items():
        if fields[name] not in kinds:
            raise InputError(name, repr(fields[name]), " | ".join(kinds))
    for name, field in FIELDS.items():
        if field.type is not tuple:
            field.check(name, fields[name])
    profiled_steps(config.profile)
    _validate_model(config)
    validate_parts(config)
    _validate_training(config)
    if tokenizers.is_trained(config):
        _validate_tokenizer_training(config)
    _validate_sampling(config)
    for name, field in FIELDS.items():  # what no rule between fields has named better
        if field.type is tuple:
            field.check(name, fields[name])


def _validate_model(config: ConfigDict) -> None:
    data, tokenizer, generator = config.data, config.model.tokenizer, config.model.generator
    check_heads_divide("model.generator.heads", generator.width, generator.heads)
    if data.image_size % tokenizer.patch_size:
        raise InputError(
            "model.tokenizer.patch_size",
            f"{tokenizer.patch_size}",
            f"a divisor of data.image_size={data.image_size}",
        )
    rows = token_grid(config)[0]
    if rows % generator.patch_size:
        raise InputError(
            "model.generator.patch_size",
            f"{generator.patch_size}",
            f"a divisor of the tokenizer's grid, {rows} x {rows}",
        )


def _validate_training(config: ConfigDict) -> None:
    for stage in ("train_tokenizer", "train_generator"):
        train = config[stage]
        if train.batch_size % train.accumulate:
            raise InputError(
                f"{stage}.accumulate",
                f"{train.accumulate}",
                f"a divisor of {stage}.batch_size={train.batch_size}",
            )
        duration(train, f"{stage}.", train.batch_size, 1)
        _validate_optimizer(train.optimizer, f"{stage}.optimizer.")
    for point in ("anneal_start_", "anneal_end_"):
        duration(config.model.generator.order, f"model.generator.order.{point}", 1, 1, False)


def _validate_optimizer(optimizer: ConfigDict, field: str) -> None:
    duration(optimizer, f"{field}warmup_", 1, 1, required=False)


def _validate_tokenizer_training(config: ConfigDict) -> None:
    train, tokenizer = config.train_tokenizer, config.model.tokenizer
    _validate_optimizer(train.discriminator.optimizer, "train_tokenizer.discriminator.optimizer.")
    duration(train.discriminator, "train_tokenizer.discriminator.start_", 1, 1, required=False)
    trains = config.job in ("train_tokenizer", "pipeline")
    if trains and train.stage == "decoder_finetune" and not config.init_from:
        raise InputError(
            "init_from", "nothing", "the workdir of the tokenizer whose decoder is to be tuned"
        )
    if train.loss.alignment:
        without = "or train_tokenizer.loss.alignment=0"
        if tokenizer.encoder.kind != "siglip2":
            found = f"{tokenizer.encoder.kind!r}, which has no features to align with"
            raise InputError("model.tokenizer.encoder.kind", found, f"'siglip2', {without}")
        if not tokenizer.decoder.predictor_width:
            field = "model.tokenizer.decoder.predictor_width"
            raise InputError(field, "0, no predictor", f"at least 1, {without}")
    # VGG16 halves an image five times, ConvNeXt as often; DINO's patches are 8 px.
    size = train.network_size
    if (train.loss.gram or train.loss.convnext) and size < 32:
        raise InputError("train_tokenizer.network_size", f"{size}", "at least 32")
    if train.loss.lpips and config.data.image_size < 16:
        expected = "at least 16 px, or train_tokenizer.loss.lpips=0"
        raise InputError("data.image_size", f"{config.data.image_size}", expected)
    if train.loss.gan:
        if size % 8 or size < 8:
            raise InputError("train_tokenizer.network_size", f"{size}", "a multiple of 8")
        piece = train.batch_size // train.accumulate
        groups = math.ceil(piece / 8)
        if piece % groups:
            raise InputError(
                "train_tokenizer.batch_size",
                f"{piece} images in a piece",
                f"what makes {groups} equal groups: the discriminator normalises over up to 8",
            )


def _job(config: ConfigDict):
    from bar_jax.jobs import JOBS  # which import this

    if config.job not in JOBS:
        raise InputError("job", repr(config.job), " | ".join(JOBS))
    return JOBS[config.job]


def _validate_sampling(config: ConfigDict) -> None:
    from bar_jax import metrics

    if _job(config).draws_images:
        check_sampling(config)
    check_labels(config.sample.labels, config.data.num_classes)
    parts = config.benchmark.parts if config.job == "benchmark" else ()
    for part, real in (("head", False), ("basis", True)):
        if part in parts and real_valued(config) != real:
            tokens = "real-valued tokens" if real else "bits"
            found = f"{part!r} with model.tokenizer.kind={config.model.tokenizer.kind}"
            raise InputError("benchmark.parts", found, f"{part!r} with {tokens} alone")
    if config.sample.images and config.sample.labels:
        found = f"{config.sample.images} with sample.labels={tuple(config.sample.labels)}"
        raise InputError("sample.images", found, "0, or no sample.labels")
    for name, chosen in (
        ("evaluate.metrics", config.evaluate.metrics),
        ("train_generator.evaluate_metrics", config.train_generator.evaluate_metrics),
    ):
        for choice in chosen:
            if choice not in metrics.KINDS:
                raise InputError(name, repr(choice), " | ".join(metrics.KINDS))
            if config.data.num_classes < metrics.KINDS[choice].classes:
                raise InputError(name, f"{choice} of one class", "() or more classes")
    if not config.evaluate.reference:
        expected = "train | validation | an .npz or a folder of images"
        raise InputError("evaluate.reference", "nothing", expected)


def check_sampling(config: ConfigDict) -> None:
    """Checks what the sampler is given."""
    section = config.sample
    if basis_inside(config):
        length = math.prod(tokenizers.sequence_grid(config))
        if not 0 <= section.tokens <= length:
            expected = f"1 to {length}, the tokens of an image, or 0 for all"
            raise InputError("sample.tokens", f"{section.tokens}", expected)
    for name in ("guidance_scale", "temperature"):
        FIELDS[f"sample.{name}"].check(f"sample.{name}", section[name])
    if real_valued(config) and section.keep != "none":
        expected = "none: only bits of real images are kept, model.tokenizer.kind=bar_fsq"
        raise InputError("sample.keep", repr(section.keep), expected)
    heads.KINDS[config.model.head.kind].check_sampling(config, written_width(config))


def check_labels(labels, num_classes: int) -> None:
    """Checks that all labels are classes."""
    for label in labels:
        if type(label) is not int or not 0 <= label < num_classes:
            raise InputError("sample.labels", repr(label), f"integers from 0 to {num_classes - 1}")
