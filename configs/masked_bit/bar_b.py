"""BAR-B on ImageNet at 256 px: 415M parameters (masked-bit paper, Tables 3, 5 and 7).

    python -m bar_jax.main --config=configs/masked_bit/bar_b.py --workdir=runs/bar_b

The paper trains the generator for 400 epochs, 20 hours on 16 H200 (Table 7), and reports gFID 1.13,
IS 289.0 with guidance (Table 3, row "BAR-B"). Without guidance it reports gFID 1.64, IS 230.4:

    --config.job=sample --config.sample.guidance_scale=1 --config.sample.temperature=2.0 \\
        --config.sample.unmasking_schedule=4,4,4,4

Its tokenizer, trained for 13 hours on 8 H200 (Table 6), had its decoder tuned for 40 more epochs:
"The whole way" in configs/README.md. Published files: bar_b.bin, bar_fsq_16bits_ft.bin. Needs
ImageNet as a tfds data set prepared as array_record.
"""

from bar_jax.config import default_config
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    config = default_config()
    config.dtype = "bfloat16"
    config.model.generator.update(dict(width=768, depth=24, heads=12))
    config.sample.update(dict(guidance_scale=5.0, temperature=2.5, unmasking_schedule=(2, 2, 5, 7)))
    return sized(config, size)
