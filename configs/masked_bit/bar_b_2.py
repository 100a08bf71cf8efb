"""BAR-B/2 on ImageNet at 256 px: 64 tokens of 64 bits (masked-bit paper, Tables 2d and 4).

    python -m bar_jax.main --config=configs/masked_bit/bar_b_2.py --workdir=runs/bar_b_2

415M parameters; 2 x 2 tokens are written as one. The paper reports gFID 1.35, IS 293.4 with
guidance (Table 2d, row "BAR-B/2"; gFID 2.24, IS 217.3 without) and 150.52 images/s on one H200 in
float32 (Table 4). It gives no hardware or hours of training for this row; BAR-B took 20 hours on 16
H200. Guidance scale and temperature are not in the paper; they are those of the published code.
Published files: bar_b_patch2.bin, bar_fsq_16bits.bin (whose decoder was not tuned any further).
Needs ImageNet as a tfds data set prepared as array_record.
"""

from bar_jax.config import default_config
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    config = default_config()
    config.dtype = "bfloat16"
    config.model.generator.update(dict(width=768, depth=24, heads=12, patch_size=2))
    config.sample.update(
        dict(guidance_scale=5.5, temperature=2.0, unmasking_schedule=(16, 16, 16, 16))
    )
    return sized(config, size)
