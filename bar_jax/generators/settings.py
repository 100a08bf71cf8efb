"""What a sampler is compiled for."""

from typing import NamedTuple

from ml_collections import ConfigDict

from bar_jax.nn.decoding import Weights


class Settings(NamedTuple):
    """The part of `config.sample` that makes another program; hashable.

    Attributes:
      guided: whether there is an unconditional branch.
      unmasking_schedule: of the masked-bit head.
      order: of bit tokens, `basis` | `random`.
      sampler: of xAR, `euler_maruyama` | `euler`.
      steps: of xAR in each cell, or of the diffusion head.
      clip: of the diffusion head, see `heads.gaussian_diffusion.moments`.
      iterations: of MAR.
      tokens: of basis tokens, how many are written; 0: all.
      weights: what layers' kernels are kept as, see `nn.decoding`.
    """

    guided: bool
    unmasking_schedule: tuple[int, ...] = ()
    order: str = "basis"
    sampler: str = "euler_maruyama"
    steps: int = 50
    iterations: int = 64
    clip: float = 0.0
    tokens: int = 0
    weights: Weights = "float32"


def sampling_settings(config: ConfigDict) -> Settings:
    """The settings of `config.sample`."""
    section = config.sample
    return Settings(
        guided=section.guidance_scale > 1,
        unmasking_schedule=tuple(section.unmasking_schedule),
        order=section.order,
        sampler=section.sampler,
        steps=section.steps,
        iterations=section.iterations,
        clip=section.clip,
        tokens=section.tokens,
        weights=section.weights,
    )
