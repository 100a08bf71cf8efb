"""A learned basis of pixels: faces at 64 px in patches of 4 (basis paper, section 4.3, Figure 3).

    python -m bar_jax.main --config=configs/basis/faces.py --workdir=runs/faces \\
        --config.data.path=/path/to/faces

The paper takes FFHQ. The images lie in one sub-folder of the path, which is their only class; every
20th is held out. 256 tokens of 48 numbers, xAR-B. The paper shows the basis and reports no number.
"""

from bar_jax.config.hosts import xar
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    config = xar("b")
    config.data.update(dict(source="folder", name="", train_split="", validation_split=""))
    config.data.update(dict(image_size=64, num_classes=1))
    config.model.tokenizer.update(dict(kind="pixels", patch_size=4))
    config.model.generator.label_dropout = 0.0
    config.train_generator.batch_size = 256
    config.sample.guidance_scale = 1.0
    config.evaluate.metrics = ()  # the paper reports no number
    return sized(config, size)
