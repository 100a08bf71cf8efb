"""BAR-B: xAR-B on a learned basis, ImageNet at 256 px (basis paper, Tables 1, 2 and 8).

    python -m bar_jax.main --config=configs/basis/xar_b.py --workdir=runs/xar_b

172.6M parameters, and the 256 x 256 of A. The paper trains it for 800 epochs on 16 A100 and reports
FID 1.56, IS 292.4, precision 0.83, recall 0.63. The files that it needs, and what its ablations
change, are in configs/README.md.
"""

from bar_jax.config.hosts import xar
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    return sized(xar("b"), size)
