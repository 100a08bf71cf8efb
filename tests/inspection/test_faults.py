"""Tests of bar_jax/inspection/faults.py: each planted in a small compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.inspection import faults, hlo, roofline

SHAPE = (4, 33, 5)
SIZE = 4 * 33 * 5


def _program(body, *carry):
    """The program of a loop."""
    turn = lambda carry, i: (body(carry, i), None)
    loop = jax.jit(lambda carry: jax.lax.scan(turn, carry, jnp.arange(7))[0])
    return hlo.parse(loop.lower(carry).compile().as_text())


def _cached(carry, i, read=lambda cache: cache):
    """Writes a row and reads all, as decoding does."""
    cache, x = carry
    cache = jax.lax.dynamic_update_slice_in_dim(cache, x[:, None], i, axis=1)
    return cache, jnp.tanh(jnp.einsum("bsc,bc->bs", read(cache), x)[:, : SHAPE[2]])


def test_updates_in_place_are_no_copies():
    program = _program(_cached, jnp.zeros(SHAPE), jnp.zeros((4, 5)))
    assert faults.loop_copies(program, SIZE) == []


def test_a_planted_copy_of_the_cache():
    """A sorted cache has to be written anew."""
    program = _program(
        lambda carry, i: _cached(carry, i, lambda cache: jnp.sort(cache, axis=1)),
        jnp.zeros(SHAPE),
        jnp.zeros((4, 5)),
    )
    found = faults.loop_copies(program, SIZE)
    assert found
    assert all(array.elements >= SIZE for i in found for array in hlo.arrays(i.shape)[:1])
    assert faults.loop_copies(program, SIZE + 1) == []


TEXT = """HloModule m

%join (a: bf16[8,16], b: bf16[8,16]) -> bf16[16,16] {
  %a = bf16[8,16]{1,0} parameter(0)
  %b = bf16[8,16]{1,0} parameter(1)
  ROOT %j = bf16[16,16]{1,0} concatenate(%a, %b), dimensions={0}
}

%sum (c: bf16[16,16]) -> bf16[16,16] {
  %c = bf16[16,16]{1,0} parameter(0)
  ROOT %s = bf16[16,16]{1,0} add(%c, %c)
}

ENTRY %main (x: bf16[8,16], y: bf16[8,16]) -> bf16[16,16] {
  %x = bf16[8,16]{1,0} parameter(0)
  %y = bf16[8,16]{1,0} parameter(1)
  %joined = bf16[16,16]{1,0} fusion(%x, %y), kind=kLoop, calls=%join
  %near = (bf16[16,16]{1,0:S(1)}, bf16[16,16]{1,0}, u32[]) copy-start(%joined)
  %done = bf16[16,16]{1,0:S(1)} copy-done(%near)
  %added = bf16[16,16]{1,0} fusion(%done), kind=kLoop, calls=%sum
  ROOT %turned = bf16[16,16]{0,1} copy(%added)
}
"""


def test_moves_compute_nothing():
    """A join and a copy to another layout; not what brings an array to the chip."""
    program = hlo.parse(TEXT)
    found = faults.moves(program, roofline.operations(program))
    assert [operation.instruction.name for operation in found] == ["%joined", "%turned"]


def test_a_planted_product_of_float32():
    """Of two products the one that is not bfloat16 (CPU's compiler would widen both)."""
    text = """ENTRY %main (x: f32[]) -> f32[] {
  %a = bf16[8,16]{1,0} parameter(0)
  %b = bf16[16,4]{1,0} parameter(1)
  %c = f32[4,4]{1,0} parameter(2)
  %d = f32[8,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %e = f32[8,4]{1,0} dot(%d, %c), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
    found = roofline.operations(hlo.parse(text))
    (one,) = faults.float32_products(found)
    assert (one.instruction.name, one.flops) == ("%e", 2 * 8 * 4 * 4)
    wide = faults.float32_arrays(found, 32)
    assert [(o.instruction.name, o.bytes) for o in wide] == [("%d", 128), ("%e", 128)]
    assert faults.float32_arrays(found, 33) == []


@pytest.mark.parametrize("inside", [True, False])
def test_a_planted_callback(inside):
    """Only what waits for the host at every turn is told."""
    shape = jax.ShapeDtypeStruct((4, 5), np.float32)
    ask = lambda x: jax.pure_callback(np.sin, shape, x)

    def loop(x):
        x = jax.lax.scan(lambda x, _: (ask(x) if inside else x + 1, None), x, length=3)[0]
        return ask(x)

    program = hlo.parse(jax.jit(loop).lower(jnp.zeros((4, 5))).compile().as_text())
    assert len(faults.host_transfers(program)) == inside
