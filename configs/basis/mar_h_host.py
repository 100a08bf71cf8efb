"""MAR-H as published, no basis: ImageNet at 256 px (basis paper, Table 2).

    python -m bar_jax.main --config=configs/basis/mar_h_host.py --workdir=runs/mar_h_host

942.4M parameters; published file mar_huge.pth (third_party/mar). The basis paper reports FID 1.55,
IS 303.7, precision 0.81, recall 0.62.
"""

from bar_jax.config.hosts import published_mar
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    return sized(published_mar("h"), size)
