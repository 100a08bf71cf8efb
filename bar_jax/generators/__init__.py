"""p(tokens | class). A new generator is one file here and one line in HOSTS.

What the jobs know of a generator:

    token_shape, token_dtype            of an image's tokens, as the tokenizer knows them
    initialize(tokens, labels, keys)    touches every parameter, for `init`
    draw(keys)                          the random draws of a training step
    loss(tokens, labels, draws, random_share, deterministic, counted)       sums over a batch
    sample(params, labels, keys, settings, guidance_scale, temperature)     tokens of a batch

Bits are written by the masked-bit generator. Real-valued tokens are written by a host inside
`BasisGenerator`; what that knows of a host:

    channels, num_classes, length       of its sequence y [B, length, channels]
    native_order, takes_order           the order it likes, if any; whether it takes `order`
    draw(keys), predict(y, labels, draws), initialize(...), sample(...)     as above, of y
"""

import functools
import math

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from bar_jax.bases import Basis, make_basis
from bar_jax.config import bits_per_token, real_valued, token_channels, token_grid
from bar_jax.generators.basis import BasisGenerator
from bar_jax.generators.bidirectional import Transformer
from bar_jax.generators.causal import CausalTransformer
from bar_jax.generators.diffusion import CausalDiffusion
from bar_jax.generators.mar import MAR
from bar_jax.generators.masked_bit import MaskedBitGenerator
from bar_jax.generators.xar import XAR
from bar_jax.heads import make_diffusion_head, make_head
from bar_jax.tokenizers import sequence_grid


def _grid(config: ConfigDict) -> tuple[int, int]:
    """Rows and columns of tokens as the generator writes them."""
    return tuple(side // config.model.generator.patch_size for side in token_grid(config))


def _places(config: ConfigDict, length: int) -> tuple[int, ...]:
    """Where the causal transformer's tokens stand: in a grid, or one after another."""
    grid = _grid(config)
    in_grid = config.model.generator.rope == "2d" and length == grid[0] * grid[1]
    return grid if in_grid else (length,)


def _channels(config: ConfigDict) -> int:
    """d: numbers of a real-valued token as the generator writes it."""
    return token_channels(config) * config.model.generator.patch_size**2


def _trunk(
    config: ConfigDict, remat: bool, grid: tuple[int, ...], *, bits: int = 0, channels: int = 0
) -> CausalTransformer:
    """The causal transformer, over bits or real numbers."""
    generator = config.model.generator
    return CausalTransformer(
        bits=bits,
        grid=grid,
        num_classes=config.data.num_classes,
        width=generator.width,
        depth=generator.depth,
        heads=generator.heads,
        output_width=config.model.head.width,
        class_repeats=generator.class_repeats,
        dropout=generator.dropout,
        attention_dropout=generator.attention_dropout,
        remat=remat,
        dtype=jnp.dtype(config.dtype),
        channels=channels,
    )


def _masked_bit(config: ConfigDict, remat: bool) -> MaskedBitGenerator:
    generator, bits = config.model.generator, bits_per_token(config)
    grid = sequence_grid(config)
    length = math.prod(grid) // generator.patch_size**2
    inside = config.model.tokenizer.kind == "basis_fsq"  # then tokens come in the basis's order
    return MaskedBitGenerator(
        trunk=_trunk(config, remat, _places(config, length), bits=bits),
        head=make_head(config, bits, remat),
        token_grid=grid,
        patch_size=generator.patch_size,
        label_dropout=generator.label_dropout,
        basis=Basis("identity") if inside else make_basis(config),
    )


def _xar(config: ConfigDict, remat: bool) -> XAR:
    generator = config.model.generator
    return XAR(
        channels=_channels(config),
        grid=_grid(config),
        cell_size=generator.cell_size,
        num_classes=config.data.num_classes,
        width=generator.width,
        depth=generator.depth,
        heads=generator.heads,
        dropout=generator.dropout,
        attention_dropout=generator.attention_dropout,
        shared_time=generator.shared_time,
        time=generator.time,
        remat=remat,
        dtype=jnp.dtype(config.dtype),
    )


def _mar(config: ConfigDict, remat: bool) -> MAR:
    generator, dtype = config.model.generator, jnp.dtype(config.dtype)
    transformer = functools.partial(
        Transformer,
        width=generator.width,
        depth=generator.depth,
        heads=generator.heads,
        dropout=generator.dropout,
        attention_dropout=generator.attention_dropout,
        remat=remat,
        dtype=dtype,
    )
    return MAR(
        length=make_basis(config).length(_grid(config)),
        num_classes=config.data.num_classes,
        encoder=transformer(),
        decoder=transformer(),
        head=make_diffusion_head(config, _channels(config), remat),
        class_repeats=generator.class_repeats,
        mask_ratio_min=generator.mask_ratio_min,
        shared_time=generator.shared_time,
        dtype=dtype,
    )


def _causal(config: ConfigDict, remat: bool) -> CausalDiffusion:
    length = make_basis(config).length(_grid(config))
    return CausalDiffusion(
        trunk=_trunk(config, remat, _places(config, length), channels=_channels(config)),
        head=make_diffusion_head(config, _channels(config), remat),
        shared_time=config.model.generator.shared_time,
    )


# What only some kinds read of `config.model.generator`.
FIELDS = {
    "causal": ("rope", "class_repeats", "shared_time"),
    "xar": ("cell_size", "time", "shared_time"),
    "mar": ("class_repeats", "mask_ratio_min", "shared_time"),
}
HOSTS = {"causal": _causal, "xar": _xar, "mar": _mar}


def make_generator(config: ConfigDict, remat: bool = False) -> nn.Module:
    """The generator that a config describes; `remat` saves activation memory in training."""
    if not real_valued(config):
        return _masked_bit(config, remat)
    basis, generator = config.model.basis, config.model.generator
    return BasisGenerator(
        host=HOSTS[generator.kind](config, remat),
        basis=make_basis(config),
        token_grid=token_grid(config),
        patch_size=generator.patch_size,
        objective=basis.objective,
        regularizer=basis.regularizer,
        snr_clip=basis.snr_clip,
        label_dropout=generator.label_dropout,
    )
