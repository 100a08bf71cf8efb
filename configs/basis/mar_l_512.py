"""MAR-L on a learned basis, ImageNet at 512 px (basis paper, Table 3).

    python -m bar_jax.main --config=configs/basis/mar_l_512.py --workdir=runs/mar_l_512

The paper reports FID 1.65, IS 287.7, precision 0.85, recall 0.64 and no layout: here 256 tokens of
2 x 2 latents.
"""

from bar_jax.config.hosts import mar
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    return sized(mar("l", 512), size)
