"""BAR-B/4 on ImageNet at 256 px: 16 tokens of 256 bits (masked-bit paper, Tables 2d and 4).

    python -m bar_jax.main --config=configs/masked_bit/bar_b_4.py --workdir=runs/bar_b_4

416M parameters; 4 x 4 tokens are written as one. The paper reports gFID 2.34, IS 274.7 with
guidance (Table 2d, row "BAR-B/4"; gFID 3.50, IS 212.4 without) and 445.48 images/s on one H200 in
float32 (Table 4). It gives no hardware or hours of training for this row; BAR-B took 20 hours on 16
H200. Guidance scale and temperature are not in the paper; they are those of the published code.
Published files: bar_b_patch4.bin, bar_fsq_16bits.bin (whose decoder was not tuned any further).
Needs ImageNet as a tfds data set prepared as array_record.
"""

from bar_jax.config import default_config
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    config = default_config()
    config.dtype = "bfloat16"
    config.model.generator.update(dict(width=768, depth=24, heads=12, patch_size=4))
    config.sample.update(
        dict(guidance_scale=9.6, temperature=1.4, unmasking_schedule=(64, 64, 64, 64))
    )
    return sized(config, size)
