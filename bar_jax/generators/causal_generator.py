"""The causal transformer as a generator: of bits (masked-bit paper), or of real-valued tokens.

Bits are written by a head of bits, which is the masked-bit generator; real numbers by the diffusion
head, which is the plain form of basis autoregression.
"""

import math

import jax.numpy as jnp
from ml_collections import ConfigDict

from bar_jax.bases import IDENTITY, Basis, make_basis
from bar_jax.generators.basis import BasisGenerator, make_basis_generator
from bar_jax.generators.causal import CausalTransformer
from bar_jax.generators.diffusion import CausalDiffusion
from bar_jax.generators.kind import (
    GeneratorKind,
    check_heads,
    rows_of_basis,
    written_grid,
    written_width,
)
from bar_jax.generators.masked_bit import MaskedBitGenerator
from bar_jax.heads import make_head
from bar_jax.tokenizers import basis_inside, real_valued, sequence_grid


def _make(config: ConfigDict, remat: bool) -> MaskedBitGenerator | BasisGenerator:
    if real_valued(config):
        return make_basis_generator(config, _host(config, remat))
    generator, width = config.model.generator, written_width(config)
    grid = sequence_grid(config)
    length = math.prod(grid) // generator.patch_size**2
    # Tokens of a tokenizer with a basis come in the basis's order.
    basis = Basis(IDENTITY) if basis_inside(config) else make_basis(config)
    return MaskedBitGenerator(
        trunk=_trunk(config, remat, length, bits=width),
        head=make_head(config, width, remat),
        token_grid=grid,
        patch_size=generator.patch_size,
        label_dropout=generator.label_dropout,
        basis=basis,
    )


def _host(config: ConfigDict, remat: bool) -> CausalDiffusion:
    width = written_width(config)
    return CausalDiffusion(
        trunk=_trunk(config, remat, rows_of_basis(config), channels=width),
        head=make_head(config, width, remat),
        shared_time=config.model.generator.shared_time,
    )


def _trunk(config: ConfigDict, remat: bool, length: int, **width: int) -> CausalTransformer:
    """The causal transformer over `length` tokens of so many bits, or channels."""
    generator, grid = config.model.generator, written_grid(config)
    in_grid = generator.rope == "2d" and length == math.prod(grid)
    return CausalTransformer(
        **({"bits": 0, "channels": 0} | width),
        grid=grid if in_grid else (length,),  # or one after another
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
    )


def _check(config: ConfigDict, rows: int, length: int) -> None:
    del rows, length
    check_heads(config, even=True)  # half of them look from where they will write


KIND = GeneratorKind(
    make=_make,
    writes_bits=True,
    writes_numbers=True,
    takes_order=True,
    fields=("rope", "class_repeats", "shared_time"),
    check=_check,
)
