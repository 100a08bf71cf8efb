"""xAR-L as published, no basis: ImageNet at 256 px (basis paper, Table 2).

    python -m bar_jax.main --config=configs/basis/xar_l_host.py --workdir=runs/xar_l_host

608.4M parameters; published file xar_large.pth (third_party/xar). The basis paper reports FID 1.28,
IS 292.5, precision 0.82, recall 0.62.
"""

from bar_jax.config.hosts import published_xar
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    return sized(published_xar("l"), size)
