"""BAR-FSQ, the decoder tuned further with the encoder frozen (masked-bit paper, section 4.1).

    python -m bar_jax.main --config=configs/tokenizer/bar_fsq_ft.py --workdir=runs/bar_fsq_ft \\
        --config.init_from=runs/bar_fsq

The same 16 bits a token at 256 px. "For final models, we finetune the decoder for 40 more epochs",
says the paper; it gives neither rFID nor hours for them, the first 40 epochs took 13 hours on 8
H200 (Table 6). Starts from a workdir that bar_fsq.py trained, or into which job=import_weights read
bar_fsq_16bits.bin. Schedules, losses and the discriminator, which starts anew at epoch 20, are
those of the first 40 epochs: the paper names no others. Published files: bar_fsq_16bits_ft.bin.
Needs ImageNet as a tfds data set prepared as array_record, and the weight files of the frozen
networks (`config.train_tokenizer.weights`).
"""

from bar_jax.config import default_config
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    config = default_config()
    config.job = "train_tokenizer"
    config.dtype = "bfloat16"
    config.train_tokenizer.stage = "decoder_finetune"
    return sized(config, size)
