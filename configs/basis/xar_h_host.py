"""xAR-H as published, no basis: ImageNet at 256 px (basis paper, Table 2).

    python -m bar_jax.main --config=configs/basis/xar_h_host.py --workdir=runs/xar_h_host

1.186B parameters; published file xar_huge.pth (third_party/xar). The basis paper reports FID 1.24,
IS 301.6, precision 0.83, recall 0.64.
"""

from bar_jax.config.hosts import published_xar
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    return sized(published_xar("h"), size)
