"""From the transformer's output to one token. A new head is one file here and one line in KINDS.

What the masked-bit generator knows of a head of bits:

    uniforms_per_token                  uniform draws that a token needs in training
    draws(uniform [..., U])             what `loss` needs of them
    loss(z, bits, draws, counted)       sums over tokens, of hidden states z [M, W] and bits [M, n]
    noise_shape(schedule)               uniform draws that a token needs in sampling
    sample(z, guidance, temperature, schedule, uniform)     bits [B, n] and the logits drawn from

What hosts of real-valued tokens know is `diffusion.DiffusionHead`.
"""

import flax.linen as nn
from ml_collections import ConfigDict

from bar_jax.heads import bit, diffusion, linear, masked_bit
from bar_jax.heads.kind import HeadKind

KINDS = {
    "masked_bit": masked_bit.KIND,
    "bit": bit.KIND,
    "linear": linear.KIND,
    "diffusion": diffusion.KIND,
    "flow": HeadKind(make=None, writes_bits=False),  # xAR's own output
}


def make_head(config: ConfigDict, width: int, remat: bool = False) -> nn.Module:
    """The head that a config describes, for tokens of `width` bits or numbers.

    Args:
      remat: save activation memory in training.
    """
    return KINDS[config.model.head.kind].make(config, width, remat)
