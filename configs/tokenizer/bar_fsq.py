"""BAR-FSQ on ImageNet at 256 px: 256 tokens of 16 bits (masked-bit paper, Tables 1 and 6).

    python -m bar_jax.main --config=configs/tokenizer/bar_fsq.py --workdir=runs/bar_fsq

723.5M trained parameters: an encoder that starts from SigLIP2-so400m, a ViT-L decoder from scratch.
The paper trains for 40 epochs, 13 hours on 8 H200 (Table 6). Other numbers of bits by

    --config.model.tokenizer.bits=64

The paper's rFID: 1.25 at 10 bits, 1.13 at 12, 1.06 at 14, 1.02 at 16, 0.93 at 18, 0.70 at 32, 0.50
at 64 (Table 1), 0.33 at 256 (section 3.3); it gives no number for 128. For final models it tunes
the decoder for 40 more epochs (bar_fsq_ft.py). Published files: bar_fsq_16bits.bin. Needs ImageNet
as a tfds data set prepared as array_record, and the weight files of the frozen networks
(`config.train_tokenizer.weights`).
"""

from bar_jax.config import default_config
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    config = default_config()
    config.job = "train_tokenizer"
    config.dtype = "bfloat16"
    return sized(config, size)
