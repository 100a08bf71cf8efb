"""A learned basis inside the masked-bit model, on handwritten digits: both papers in one system.

    python -m bar_jax.main --config=configs/unified/digits.py --workdir=runs/unified

The quickstart's networks, but an image is 16 basis coefficients of 16 bits, coarse to fine. With
`--config.sample.tokens=m` the first m of them are written alone. The README beside has what it
reaches with other bases, and without one.
"""

from bar_jax.config.file import load_config
from bar_jax.config.presets import unified


def get_config(size=None):
    """The config; `size` is what follows the colon in `--config=FILE:size`."""
    config = load_config("configs/quickstart.py" + (f":{size}" if size else ""))
    unified(config)
    return config
