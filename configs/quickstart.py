"""The whole method on scikit-learn's handwritten digits, in minutes on two CPU cores.

    python -m bar_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

8 x 8 px images, 2 x 2 px patches: 16 tokens of 16 bits. The same modules as at full size, small.
Expect about 26 dB reconstructions and samples that a classifier reads at 0.93 or better (its FID
below 0.6).
"""

from bar_jax.config import default_config
from bar_jax.config.presets import classifier_metrics, from_scratch, sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    config = default_config()
    config.data.update(dict(source="digits", name="", image_size=8, num_classes=10, mirror=False))

    config.model.tokenizer.update(dict(bits=16, patch_size=2, centered_bits=True))
    config.model.tokenizer.encoder.update(dict(width=64, depth=1, heads=4, mlp_width=256))
    config.model.tokenizer.decoder.update(dict(width=64, depth=1, heads=4, mlp_width=256))
    from_scratch(config)
    config.model.generator.update(dict(width=64, depth=2, heads=4, class_repeats=2))
    config.model.generator.order.update(
        dict(anneal_start_epochs=0.0, anneal_end_epochs=0.0, anneal_end_steps=300)
    )
    config.model.head.update(dict(width=64, depth=2))

    train = config.train_tokenizer
    train.update(dict(batch_size=64, steps=600, epochs=0.0, ema_decay=0.99))
    train.optimizer.update(dict(learning_rate=3e-3, warmup_steps=50, warmup_epochs=0.0))
    train = config.train_generator
    train.update(dict(batch_size=64, steps=600, epochs=0.0, ema_decay=0.99))
    train.optimizer.update(dict(learning_rate=3e-3, warmup_steps=50, warmup_epochs=0.0))
    for train in (config.train_tokenizer, config.train_generator):
        train.update(dict(log_every=50, save_every=200, evaluate_every=1000))

    config.train_generator.evaluate_samples = 1000

    config.encode.update(dict(batch_size=128, shards=1))
    config.sample.update(
        dict(
            images_per_class=100,
            guidance_scale=3.0,
            temperature=2.5,
            unmasking_schedule=(4, 4, 4, 4),
            batch_size=200,
        )
    )
    classifier_metrics(config)
    return sized(config, size)
