"""Learned and fixed bases on handwritten digits, in minutes on two CPU cores: xAR on pixels.

    python -m bar_jax.main --config=configs/basis/digits.py --workdir=runs/digits \\
        --config.model.basis.kind=learned

8 x 8 px images, 2 x 2 px patches: 16 tokens of 12 numbers, written in 4 steps of 4. The README
beside has what it reaches with other bases.
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
        dict(kind="xar", width=64, depth=1, heads=4, cell_size=2, shared_time=True, time="uniform")
    )
    config.model.head.kind = "flow"

    train = config.train_generator
    train.update(dict(batch_size=64, steps=1000, epochs=0.0, ema_decay=0.99))
    train.update(dict(log_every=100, save_every=500, evaluate_every=500))
    train.optimizer.update(dict(learning_rate=3e-3, warmup_steps=50, warmup_epochs=0.0))
    train.optimizer.update(dict(weight_decay=0.02, no_decay=("norm", "bias", "basis")))

    config.encode.update(dict(batch_size=128, shards=1))
    config.sample.update(dict(images_per_class=100, guidance_scale=1.0, temperature=1.0))
    config.sample.update(dict(steps=25, batch_size=200))
    classifier_metrics(config)
    return sized(config, size)
