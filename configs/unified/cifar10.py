"""A learned basis inside the masked-bit model on CIFAR-10, for two CPU cores.

    python -m bar_jax.main --config=configs/unified/cifar10.py --workdir=runs/unified_cifar10 \\
        --config.data.path=cifar10

`data.path` holds train/CLASS/*.jpg and test/CLASS/*.jpg. 32 px in patches of 4: 64 coefficients of
16 bits. The losses are L1 and L2, so that no weight files are needed. The README beside has what
a few minutes of it give.
"""

from bar_jax.config import default_config
from bar_jax.config.presets import classifier_metrics, from_scratch, sized, unified


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    config = default_config()
    config.data.update(dict(source="folder", name="", validation_split="test"))
    config.data.update(dict(image_size=32, num_classes=10, mirror=False))

    config.model.tokenizer.update(dict(bits=16, patch_size=4, centered_bits=True))
    sizes = dict(width=96, depth=2, heads=4, mlp_width=384)
    config.model.tokenizer.encoder.update(sizes)
    config.model.tokenizer.decoder.update(sizes)
    from_scratch(config)
    unified(config)
    config.model.generator.update(dict(width=96, depth=3, heads=4, class_repeats=2))
    config.model.head.update(dict(width=96, depth=2))

    train = config.train_tokenizer
    train.update(dict(batch_size=32, steps=600, epochs=0.0, ema_decay=0.99))
    train.optimizer.update(dict(learning_rate=3e-3, warmup_steps=50, warmup_epochs=0.0))
    train = config.train_generator
    train.update(dict(batch_size=32, steps=600, epochs=0.0, ema_decay=0.99))
    train.optimizer.update(dict(learning_rate=3e-3, warmup_steps=50, warmup_epochs=0.0))
    for train in (config.train_tokenizer, config.train_generator):
        train.update(dict(log_every=50, save_every=300, evaluate_every=600))
    config.train_generator.evaluate_samples = 1000

    config.encode.update(dict(batch_size=500, shards=8))
    config.sample.update(dict(images_per_class=100, guidance_scale=3.0, temperature=2.5))
    config.sample.update(dict(unmasking_schedule=(4, 4, 4, 4), batch_size=200))
    classifier_metrics(config)
    return sized(config, size)
