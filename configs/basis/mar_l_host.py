"""MAR-L as published, no basis: ImageNet at 256 px (basis paper, Table 2).

    python -m bar_jax.main --config=configs/basis/mar_l_host.py --workdir=runs/mar_l_host

478.3M parameters; published file mar_large.pth (third_party/mar). The basis paper reports FID 1.78,
IS 296.0, precision 0.81, recall 0.60.
"""

from bar_jax.config.hosts import published_mar
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    return sized(published_mar("l"), size)
