"""BAR-L on ImageNet at 512 px: 1.1B parameters, 1024 tokens of 10 bits (masked-bit paper, Table 8).

    python -m bar_jax.main --config=configs/masked_bit/bar_l_512.py --workdir=runs/bar_l_512 \\
        --config.mesh.fsdp=8

The paper trains the generator for 200 epochs and reports gFID 1.09, IS 311.1 with guidance (Table
8, row "BAR-L"). It gives no hardware or hours for this row; BAR-L at 256 px took 32 hours on 32
H200 for 400 epochs of a quarter of the tokens. Bits, schedules and sampling are not in the paper
either; they are those of the published code, like attention dropout 0. Published files:
bar_l_res512.bin, bar_fsq_10bits_res512.bin (spelt bar_sfq_10bits_res512.bin by its authors). Needs
ImageNet as a tfds data set prepared as array_record.
"""

from bar_jax.config import default_config
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    config = default_config()
    config.dtype = "bfloat16"
    config.data.image_size = 512
    config.model.tokenizer.bits = 10
    config.model.generator.update(dict(width=1280, depth=32, heads=16, dropout=0.2))
    config.model.generator.order.update(dict(anneal_start_epochs=100.0, anneal_end_epochs=150.0))
    config.train_generator.epochs = 200.0
    config.train_generator.optimizer.warmup_epochs = 50.0
    config.sample.update(dict(guidance_scale=4.2, temperature=2.8, unmasking_schedule=(2, 2, 2, 4)))
    return sized(config, size)
