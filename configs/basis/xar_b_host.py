"""xAR-B as published, no basis: ImageNet at 256 px (basis paper, Table 2).

    python -m bar_jax.main --config=configs/basis/xar_b_host.py --workdir=runs/xar_b_host

172.6M parameters; published file xar_base.pth (third_party/xar). The basis paper reports FID 1.72,
IS 280.4, precision 0.82, recall 0.59.
"""

from bar_jax.config.hosts import published_xar
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    return sized(published_xar("b"), size)
