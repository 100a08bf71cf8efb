"""MAR-B on a learned basis, ImageNet at 256 px (basis paper, Table 2).

    python -m bar_jax.main --config=configs/basis/mar_b.py --workdir=runs/mar_b

207.9M parameters, and the 256 x 256 of A. The paper reports FID 2.18, IS 289.6, precision 0.83,
recall 0.60; it does not state the guidance of these runs, which is published MAR's here.
"""

from bar_jax.config.hosts import mar
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    return sized(mar("b"), size)
