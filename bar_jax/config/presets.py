"""Groups of fields that config files set together."""

from ml_collections import ConfigDict

from bar_jax.config import DURATION_UNITS, default_config
from bar_jax.runtime.errors import InputError


def unified(config: ConfigDict) -> None:
    """Puts the basis into the tokenizer: tokens are bits of basis coefficients, coarse to fine."""
    config.model.tokenizer.kind = "basis_fsq"
    config.model.basis.update(dict(kind="learned", init="pca"))
    config.model.generator.rope = "1d"
    config.model.generator.order = default_config().model.generator.order  # RAR's alone
    config.train_tokenizer.loss.update(dict(residual=0.01, prefix=0.5))


def from_scratch(config: ConfigDict) -> None:
    """Makes a tokenizer's training do without weight files: no SigLIP2, the pixel losses alone."""
    config.model.tokenizer.encoder.update(dict(kind="vit", position_grid=0))
    config.model.tokenizer.decoder.predictor_width = 0
    train = config.train_tokenizer
    train.encoder_learning_rate = 1.0
    train.loss.update(dict(lpips=0.0, convnext=0.0, gram=0.0, alignment=0.0, gan=0.0))


def classifier_metrics(config: ConfigDict) -> None:
    """Measures samples by a classifier of the data set's own: small images need no Inception."""
    config.evaluate.metrics = ("class_accuracy", "classifier_fid")
    config.train_generator.evaluate_metrics = ("classifier_fid",)


def tiny(config: ConfigDict) -> ConfigDict:
    """The same config at a size that trains two steps on a laptop: `--config=NAME.py:tiny`.

    Kinds, ratios and switches stay; widths, depths and durations shrink. Nothing is read from disk:
    the images are the bundled digits, the encoder starts from scratch, and the losses are those
    that need no weight file.
    """
    config.data.update(dict(source="digits", num_classes=10, image_size=16, num_workers=0))
    config.model.tokenizer.patch_size = 4
    config.model.tokenizer.kl.update(dict(width=32, multipliers=(1, 1, 1), blocks=1))
    for part in (config.model.tokenizer.encoder, config.model.tokenizer.decoder):
        part.update(dict(width=16, depth=2, heads=2, mlp_width=32))
    from_scratch(config)
    config.model.generator.update(dict(width=16, depth=2, heads=2, class_repeats=2))
    config.model.generator.cell_size = 2
    config.model.head.update(dict(width=16, depth=1))
    for train in (config.train_tokenizer, config.train_generator):
        train.update(dict(batch_size=16, steps=2, epochs=0.0, images=0, evaluate_images=16))
        train.update(dict(log_every=1, save_every=2, evaluate_every=2))
        train.optimizer.update(dict(warmup_steps=1, warmup_epochs=0.0, warmup_images=0))
        stays = any(train.optimizer[f"constant_{unit}"] for unit in DURATION_UNITS)
        train.optimizer.update(dict(constant_steps=2 * stays, constant_epochs=0.0))
        train.optimizer.constant_images = 0
    order = config.model.generator.order
    for point in ("anneal_start_", "anneal_end_"):
        order.update({f"{point}{unit}": 0 for unit in ("steps", "images")})
        order[f"{point}epochs"] = 0.0
    order.anneal_end_steps = 2
    config.encode.update(dict(batch_size=16, shards=2))
    config.sample.update(dict(images_per_class=2, batch_size=16, steps=4, iterations=4))
    classifier_metrics(config)
    config.evaluate.batch_size = 16
    config.train_generator.evaluate_samples = 16
    return config


def sized(config: ConfigDict, size: str | None) -> ConfigDict:
    """Applies what follows the colon in `--config=NAME.py:SIZE`; config files end with it."""
    if not size:
        return config
    if size != "tiny":
        raise InputError(f"--config=...:{size}", repr(size), "tiny, or nothing after the file")
    return tiny(config)
