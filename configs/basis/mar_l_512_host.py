"""MAR-L without a basis, ImageNet at 512 px (basis paper, Table 3).

    python -m bar_jax.main --config=configs/basis/mar_l_512_host.py --workdir=runs/mar_l_512_host

The basis paper reports FID 1.73, IS 279.9, precision 0.84, recall 0.62 and no layout: here 256
tokens of 2 x 2 latents.
"""

from bar_jax.config.hosts import published_mar
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    return sized(published_mar("l", 512), size)
