"""Learned and fixed bases on handwritten digits: next-basis prediction, a causal transformer.

    python -m bar_jax.main --config=configs/basis/digits_causal.py --workdir=runs/digits_causal \\
        --config.model.basis.kind=learned

As `digits.py`, but 16 tokens one after another, each drawn by a diffusion head.
"""

from bar_jax.config import default_config
from bar_jax.config.presets import classifier_metrics, sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    config = default_config()
    config.data.update(dict(source="digits", name="", image_size=8, num_classes=10, mirror=False))
    config.model.tokenizer.update(dict(kind="pixels", patch_size=2))
    config.model.basis.update(dict(kind="learned", block=2))
    config.model.generator.update(
        dict(kind="causal", width=64, depth=2, heads=4, class_repeats=2, shared_time=True)
    )
    config.model.head.update(dict(kind="diffusion", width=128, depth=2, timesteps_per_token=2))

    train = config.train_generator
    train.update(dict(batch_size=32, steps=800, epochs=0.0, ema_decay=0.99))
    train.update(dict(log_every=100, save_every=400, evaluate_every=400))
    train.optimizer.update(dict(learning_rate=2e-3, warmup_steps=50, warmup_epochs=0.0))
    train.optimizer.weight_decay = 0.02

    config.encode.update(dict(batch_size=128, shards=1))
    config.sample.update(dict(images_per_class=100, guidance_scale=1.0, temperature=1.0))
    config.sample.update(dict(steps=50, clip=4.0, batch_size=200))
    classifier_metrics(config)
    return sized(config, size)
