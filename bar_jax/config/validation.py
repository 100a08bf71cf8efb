"""What is wrong with a value of a config, told before anything is compiled."""

import math

from ml_collections import ConfigDict

from bar_jax.config import (
    FIELDS,
    basis_inside,
    bits_per_token,
    duration,
    flatten,
    profiled_steps,
    real_valued,
    token_grid,
)
from bar_jax.config.validation_basis import validate_basis
from bar_jax.runtime.errors import InputError

# Kinds that their rooms have; other choices stand with their fields.
KINDS = {
    "model.tokenizer.kind": ("bar_fsq", "basis_fsq", "kl_vae", "pixels"),
    "model.generator.kind": ("causal", "xar", "mar"),
    "model.head.kind": ("masked_bit", "bit", "linear", "diffusion", "flow"),
}
CHOICES = KINDS | {  # of fields with one value
    name: tuple(field.choices)
    for name, field in FIELDS.items()
    if field.choices and field.type is str
}
# Jobs that draw images.
SAMPLING_JOBS = ("pipeline", "train_generator", "sample", "basis", "benchmark")
NORM_GROUPS = 32  # of kl_vae
LINEAR_HEAD_BITS = 18  # the paper stops there too: 262,144 codes


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
    if real_valued(config):
        _validate_real_tokenizer(config)
    validate_basis(config)
    _validate_training(config)
    if not real_valued(config):
        _validate_tokenizer_training(config)
    _validate_sampling(config)
    for name, field in FIELDS.items():  # what no rule between fields has named better
        if field.type is tuple:
            field.check(name, fields[name])


def _validate_model(config: ConfigDict) -> None:
    data, tokenizer, generator = config.data, config.model.tokenizer, config.model.generator
    for name, part in (
        ("model.tokenizer.encoder", tokenizer.encoder),
        ("model.tokenizer.decoder", tokenizer.decoder),
        ("model.generator", generator),
    ):
        if part.width % part.heads:
            raise InputError(
                f"{name}.heads",
                f"{part.heads} heads at width {part.width}",
                "a number of heads that divides the width",
            )
    decoder = tokenizer.decoder
    if decoder.predictor_width and decoder.predictor_layer >= decoder.depth:
        raise InputError(
            "model.tokenizer.decoder.predictor_layer",
            f"{decoder.predictor_layer}",
            f"0 to {decoder.depth - 1}: the decoder has {decoder.depth} layers",
        )
    head_dim = generator.width // generator.heads
    causal = generator.kind == "causal"  # half of its heads look from where they will write
    if (causal and generator.heads % 2) or head_dim % 4:
        raise InputError(
            "model.generator.heads",
            f"{generator.heads} heads of {head_dim} channels",
            "an even number of heads, each with a multiple of 4 channels"
            if causal
            else "heads with a multiple of 4 channels each",
        )
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
    bits, head = bits_per_token(config), config.model.head
    if not real_valued(config) and head.kind == "linear" and bits > LINEAR_HEAD_BITS:
        weights = head.width * 2**bits * 4
        raise InputError(
            "model.head.kind",
            f"linear at {bits} bits per token",
            f"at most {LINEAR_HEAD_BITS} bits: its {head.width} x 2^{bits} weights would take "
            f"{_amount(weights)}, in training {_amount(4 * weights)}; masked_bit takes any bits",
        )


def _amount(size: int) -> str:
    """Bytes for people: 16 KiB, 32 TiB, 2^80 bytes."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    power = (size.bit_length() - 1) // 10
    if power >= len(units):
        return f"2^{math.log2(size):.0f} bytes"
    return f"{size / 2 ** (10 * power):.3g} {units[power]}"


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


def _validate_real_tokenizer(config: ConfigDict) -> None:
    """Checks what is particular to `kl_vae` and `pixels`: neither is trained here."""
    tokenizer, kind = config.model.tokenizer, config.model.tokenizer.kind
    trained = config.job == "train_tokenizer"
    if trained or (config.job == "benchmark" and "tokenizer_training" in config.benchmark.parts):
        reason = "patches have nothing to train"
        if kind == "kl_vae":
            reason = "the weights of kl_vae are published, job=import_weights reads them"
        raise InputError("model.tokenizer.kind", repr(kind), f"'bar_fsq' to train: {reason}")
    if kind == "pixels":
        if config.data.source == "tokens":
            expected = "bar_fsq | kl_vae, whose tokens were published; or a data.source of images"
            raise InputError("model.tokenizer.kind", "'pixels' with data.source=tokens", expected)
        return
    sizes = tokenizer.kl
    if sizes.width % NORM_GROUPS:
        expected = f"a multiple of {NORM_GROUPS}, the groups of its norms"
        raise InputError("model.tokenizer.kl.width", f"{sizes.width}", expected)
    multipliers = tuple(sizes.multipliers)
    if not multipliers or not all(type(m) is int and m > 0 for m in multipliers):
        expected = "positive integers, one for each level"
        raise InputError("model.tokenizer.kl.multipliers", f"{multipliers}", expected)
    stride = 2 ** (len(multipliers) - 1)
    if tokenizer.patch_size != stride:
        expected = f"{stride}: the {len(multipliers)} model.tokenizer.kl.multipliers halve that far"
        raise InputError("model.tokenizer.patch_size", f"{tokenizer.patch_size}", expected)


def _validate_sampling(config: ConfigDict) -> None:
    from bar_jax import metrics  # imports JAX

    if config.job in SAMPLING_JOBS:
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
    section, bits = config.sample, bits_per_token(config)
    if basis_inside(config):
        from bar_jax.bases import make_basis  # imports JAX

        length = make_basis(config).length(token_grid(config))
        if not 0 <= section.tokens <= length:
            expected = f"1 to {length}, the tokens of an image, or 0 for all"
            raise InputError("sample.tokens", f"{section.tokens}", expected)
    for name in ("guidance_scale", "temperature"):
        FIELDS[f"sample.{name}"].check(f"sample.{name}", section[name])
    if real_valued(config) and section.keep != "none":
        expected = "none: only bits of real images are kept, model.tokenizer.kind=bar_fsq"
        raise InputError("sample.keep", repr(section.keep), expected)
    schedule = section.unmasking_schedule
    whole = all(type(count) is int and count > 0 for count in schedule)
    fits = whole and sum(schedule) == bits and sorted(schedule) == list(schedule)
    if not real_valued(config) and config.model.head.kind == "masked_bit" and not fits:
        total = f", which sums to {sum(schedule)}" if whole else ""
        raise InputError(
            "sample.unmasking_schedule",
            f"{tuple(schedule)}{total}",
            f"positive, non-decreasing integers that sum to {bits} bits",
        )


def check_labels(labels, num_classes: int) -> None:
    """Checks that all labels are classes."""
    for label in labels:
        if type(label) is not int or not 0 <= label < num_classes:
            raise InputError("sample.labels", repr(label), f"integers from 0 to {num_classes - 1}")
