"""MAR-H on a learned basis, ImageNet at 256 px (basis paper, Table 2).

    python -m bar_jax.main --config=configs/basis/mar_h.py --workdir=runs/mar_h

942.4M parameters, and the 256 x 256 of A. The paper reports FID 1.49, IS 312.8, precision 0.82,
recall 0.64; it does not state the guidance of these runs, which is published MAR's here.
"""

from bar_jax.config.hosts import mar
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    return sized(mar("h"), size)
