"""A learned basis inside BAR-B's tokenizer, on ImageNet at 256 px: both papers at full size.

    python -m bar_jax.main --config=configs/unified/bar_b.py --workdir=runs/unified_bar_b

The tokenizer of configs/tokenizer/bar_fsq.py and the generator of configs/masked_bit/bar_b.py, but
an image is 256 basis coefficients of 16 bits, coarse to fine. Nobody has trained it: schedules are
those of the two. Needs ImageNet as a tfds data set prepared as array_record, and the weight files
of the frozen networks (`config.train_tokenizer.weights`). A trained BAR-FSQ may be its start:
`--config.init_from=WORKDIR`; A can then be made of its latents (`--config.model.basis.init=pca`).
"""

from bar_jax.config import default_config
from bar_jax.config.presets import sized, unified


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    config = default_config()
    config.dtype = "bfloat16"
    unified(config)
    config.model.generator.update(dict(width=768, depth=24, heads=12))
    config.sample.update(dict(guidance_scale=5.0, temperature=2.5, unmasking_schedule=(2, 2, 5, 7)))
    return sized(config, size)
