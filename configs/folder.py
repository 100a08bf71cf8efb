"""Your own images: one folder with a sub-folder per class, any format that Pillow reads.

    python -m bar_jax.main --config=configs/folder.py --workdir=runs/mine \\
        --config.data.path=/path/to/images --config.data.num_classes=NUMBER

64 px, 8 x 8 px patches: 64 tokens of 32 bits, a tokenizer of 14M and a generator of 49M parameters,
trained from scratch: a size for one accelerator. Every 20th image is held out for validation.
No number of this config has been published.
"""

from bar_jax.config import default_config
from bar_jax.config.presets import classifier_metrics, from_scratch, sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    config = default_config()
    config.dtype = "bfloat16"
    config.data.update(dict(source="folder", name="", train_split="", validation_split=""))
    config.data.image_size = 64

    config.model.tokenizer.update(dict(bits=32, patch_size=8, centered_bits=True))
    sizes = dict(width=384, depth=4, heads=6, mlp_width=1536)
    config.model.tokenizer.encoder.update(sizes)
    config.model.tokenizer.decoder.update(sizes)
    from_scratch(config)
    config.model.generator.update(dict(width=512, depth=8, heads=8, class_repeats=8))
    config.model.generator.order.update(dict(anneal_start_epochs=50.0, anneal_end_epochs=75.0))
    config.model.head.update(dict(width=512, depth=3))

    config.train_tokenizer.update(dict(batch_size=128, epochs=40.0))
    config.train_generator.update(dict(batch_size=256, epochs=100.0, ema_decay=0.999))
    config.train_generator.optimizer.warmup_epochs = 5.0
    config.sample.update(
        dict(guidance_scale=3.0, temperature=2.0, unmasking_schedule=(4, 4, 10, 14))
    )
    classifier_metrics(config)
    return sized(config, size)
