"""MAR-B as published, no basis: ImageNet at 256 px (basis paper, Table 2).

    python -m bar_jax.main --config=configs/basis/mar_b_host.py --workdir=runs/mar_b_host

207.9M parameters; published file mar_base.pth (third_party/mar). The basis paper reports FID 2.31,
IS 281.7, precision 0.82, recall 0.57.
"""

from bar_jax.config.hosts import published_mar
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    return sized(published_mar("b"), size)
