"""BAR-L on ImageNet at 256 px: 1.1B parameters (masked-bit paper, Tables 3, 5 and 7).

    python -m bar_jax.main --config=configs/masked_bit/bar_l.py --workdir=runs/bar_l \\
        --config.mesh.fsdp=8

The paper trains the generator for 400 epochs, 32 hours on 32 H200 (Table 7), and reports gFID 0.99,
IS 296.9 with guidance (Table 3, row "BAR-L"). Without guidance it reports gFID 1.42, IS 236.2:

    --config.job=sample --config.sample.guidance_scale=1 --config.sample.temperature=2.4 \\
        --config.sample.unmasking_schedule=4,4,4,4

Its tokenizer's decoder was tuned, see "The whole way" in configs/README.md, and for attention
dropout "What differs" there. Published files: bar_l.bin, bar_fsq_16bits_ft.bin. Needs ImageNet as a
tfds data set prepared as array_record.
"""

from bar_jax.config import default_config
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    config = default_config()
    config.dtype = "bfloat16"
    config.model.generator.update(dict(width=1280, depth=32, heads=16, dropout=0.2))
    config.sample.update(dict(guidance_scale=5.3, temperature=3.0, unmasking_schedule=(2, 2, 5, 7)))
    return sized(config, size)
