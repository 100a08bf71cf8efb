"""BAR-FSQ on ImageNet at 512 px: 1024 tokens of 10 bits, for BAR-L (masked-bit paper, Table 8).

    python -m bar_jax.main --config=configs/tokenizer/bar_fsq_512.py --workdir=runs/bar_fsq_512

724.3M trained parameters. The paper gives neither rFID nor hours for it; at 256 px 40 epochs took
13 hours on 8 H200 (Table 6), and here an image has four times the tokens. Published files:
bar_fsq_10bits_res512.bin (spelt bar_sfq_10bits_res512.bin by its authors). Needs ImageNet as a tfds
data set prepared as array_record, and the weight files of the frozen networks
(`config.train_tokenizer.weights`).
"""

from bar_jax.config import default_config
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    config = default_config()
    config.job = "train_tokenizer"
    config.dtype = "bfloat16"
    config.data.image_size = 512
    config.model.tokenizer.bits = 10
    return sized(config, size)
