"""xAR-L on a learned basis, ImageNet at 512 px (basis paper, Table 3).

    python -m bar_jax.main --config=configs/basis/xar_l_512.py --workdir=runs/xar_l_512

The paper reports FID 1.63, IS 292.0, precision 0.85, recall 0.64 and no layout: here 1024 tokens in
4 cells of 16 x 16.
"""

from bar_jax.config.hosts import xar
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    return sized(xar("l", 512), size)
