"""A causal transformer with a diffusion head on a learned basis, size H (basis paper, eq. 1).

    python -m bar_jax.main --config=configs/basis/causal_h.py --workdir=runs/causal_h

Next-basis prediction in its plain form, KL-16 latents of ImageNet at 256 px. Nobody has published
such a model: sizes and training are ours, see bar_jax/config/hosts.py, and there are no numbers.
"""

from bar_jax.config.hosts import causal
from bar_jax.config.presets import sized


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    return sized(causal("h"), size)
