"""xAR-L without a basis, ImageNet at 512 px (basis paper, Table 3).

    python -m bar_jax.main --config=configs/basis/xar_l_512_host.py --workdir=runs/xar_l_512_host

The basis paper reports FID 1.70, IS 281.5, precision 0.84, recall 0.64 and no layout: here 1024
tokens in 4 cells of 16 x 16.
"""

from bar_jax.config.hosts import published_xar
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    return sized(published_xar("l", 512), size)
