"""Learned and fixed bases on CIFAR-10, for two CPU cores: xAR on pixels.

    python -m bar_jax.main --config=configs/basis/cifar10.py --workdir=runs/basis_cifar10 \\
        --config.data.path=cifar10 --config.model.basis.kind=learned

`data.path` holds train/CLASS/*.jpg and test/CLASS/*.jpg. 32 px in patches of 4: 64 tokens of 48
numbers, written in 4 steps of 16. The README beside has what a few minutes of it give.
"""

from bar_jax.config import default_config
from bar_jax.config.presets import classifier_metrics, sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    config = default_config()
    config.data.update(dict(source="folder", name="", validation_split="test"))
    config.data.update(dict(image_size=32, num_classes=10))
    config.model.tokenizer.update(dict(kind="pixels", patch_size=4))
    config.model.basis.kind = "learned"
    config.model.generator.update(
        dict(kind="xar", width=64, depth=1, heads=4, cell_size=4, shared_time=True, time="uniform")
    )
    config.model.head.kind = "flow"

    train = config.train_generator
    train.update(dict(batch_size=32, steps=800, epochs=0.0, ema_decay=0.995))
    train.update(dict(log_every=100, save_every=400, evaluate_every=800))
    train.optimizer.update(dict(learning_rate=2e-3, warmup_steps=100, warmup_epochs=0.0, b2=0.96))
    train.optimizer.update(dict(weight_decay=0.02, no_decay=("norm", "bias", "basis")))

    config.encode.update(dict(batch_size=500, shards=8))
    config.sample.update(dict(images_per_class=100, guidance_scale=1.0, temperature=1.0))
    config.sample.update(dict(steps=25, batch_size=200))
    classifier_metrics(config)
    return sized(config, size)
