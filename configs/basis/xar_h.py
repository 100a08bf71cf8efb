"""BAR-H: xAR-H on a learned basis, ImageNet at 256 px (basis paper, Tables 1, 2 and 8).

    python -m bar_jax.main --config=configs/basis/xar_h.py --workdir=runs/xar_h

1.186B parameters, and the 256 x 256 of A. The paper trains it for 800 epochs on 16 A100 and reports
FID 1.15, IS 327.1, precision 0.86, recall 0.68 (IS 324.5, precision 0.85 in Table 2). The files
that it needs, and what its ablations change, are in configs/README.md.
"""

from bar_jax.config.hosts import xar
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    return sized(xar("h"), size)
