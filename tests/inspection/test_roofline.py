"""Tests of bar_jax/inspection/roofline.py and bar_jax/inspection/hlo.py."""

import functools

import jax
import jax.numpy as jnp
import pytest

from bar_jax.inspection import hlo, roofline

TURNS, ROWS, WIDTH = 5, 8, 16


@functools.cache
def _compiled():
    """A loop with one product, and a product behind it."""

    def program(x, w):
        x = jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=TURNS)[0]
        return x @ w[:, :3]

    x, w = jnp.zeros((ROWS, WIDTH)), jnp.zeros((WIDTH, WIDTH))
    return hlo.parse(jax.jit(program).lower(x, w).compile().as_text())


def test_flops_of_a_compiled_loop():
    found = roofline.operations(_compiled())
    turn = 2 * ROWS * WIDTH * WIDTH
    assert roofline.flops(found) == TURNS * turn + 2 * ROWS * WIDTH * 3
    loop = roofline.main_loop(found)
    assert {operation.loops[0].iterations for operation in loop} == {TURNS}
    assert roofline.flops(loop) == TURNS * turn


def test_bytes_of_a_compiled_product():
    """Both sides once, the result once."""
    x, w = jnp.zeros((32, 48)), jnp.zeros((48, 64))
    program = hlo.parse(jax.jit(jnp.matmul).lower(x, w).compile().as_text())
    assert roofline.moved(roofline.operations(program)) == 4 * (32 * 48 + 48 * 64 + 32 * 64)


# As the TPU's compiler writes: a cache with heads of 64 channels, which is padded and updated in
# place; scores of it by a product of vectors; kernels that are brought to the chip's memory.
TPU = """HloModule m, is_scheduled=true

%update (c: bf16[4,2,9,64], n: bf16[4,2,1,64], i: s32[]) -> bf16[4,2,9,64] {
  %c = bf16[4,2,9,64]{3,1,0,2:T(8,128)(2,1)} parameter(0)
  %n = bf16[4,2,1,64]{3,1,0,2:T(8,128)(2,1)S(1)} parameter(1)
  %i = s32[] parameter(2)
  %z = s32[] constant(0)
  ROOT %u = bf16[4,2,9,64]{3,1,0,2:T(8,128)(2,1)} dynamic-update-slice(%c, %n, %z, %z, %i, %z)
}

%layer (k: bf16[6,16,256], j: s32[]) -> bf16[1,16,256] {
  %k = bf16[6,16,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %j = s32[] parameter(1)
  %y = s32[] constant(0)
  ROOT %s = bf16[1,16,256]{2,1,0:T(8,128)(2,1)} dynamic-slice(%k, %j, %y, %y), \
dynamic_slice_sizes={1,16,256}
}

%product (a: bf16[16,256], b: bf16[32,16]) -> bf16[32,256] {
  %b = bf16[32,16]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %a = bf16[16,256]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %d = bf16[32,256]{1,0:T(8,128)(2,1)} convolution(%b, %a), dim_labels=bf_io->bf
}

ENTRY %main (p: bf16[4,2,9,64], q: bf16[4,2,1,64], r: s32[], t: bf16[6,16,256], v: bf16[32,16]) \
-> bf16[4,2,9,64] {
  %p = bf16[4,2,9,64]{3,1,0,2:T(8,128)(2,1)} parameter(0)
  %q = bf16[4,2,1,64]{3,1,0,2:T(8,128)(2,1)S(1)} parameter(1)
  %r = s32[] parameter(2)
  %t = bf16[6,16,256]{2,1,0:T(8,128)(2,1)} parameter(3)
  %v = bf16[32,16]{1,0:T(8,128)(2,1)S(1)} parameter(4)
  %written = bf16[4,2,9,64]{3,1,0,2:T(8,128)(2,1)} fusion(%p, %q, %r), kind=kLoop, calls=%update
  %taken = bf16[1,16,256]{2,1,0:T(8,128)(2,1)} fusion(%t, %r), kind=kLoop, calls=%layer
  %flat = bf16[16,256]{1,0:T(8,128)(2,1)} bitcast(%taken)
  %begun = (bf16[16,256]{1,0:T(8,128)(2,1)S(1)}, bf16[16,256]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) \
copy-start(%flat)
  %near = bf16[16,256]{1,0:T(8,128)(2,1)S(1)} copy-done(%begun)
  %o = bf16[32,256]{1,0:T(8,128)(2,1)} fusion(%near, %v), kind=kOutput, calls=%product
  ROOT %again = bf16[4,2,9,64]{3,1,0,2:T(8,128)(2,1)} copy(%written)
}
"""
STORED = 9 * 4 * 8 * 128 * 2  # 2 heads in rows of 8, 64 channels in 128
LAYER = 16 * 256 * 2


@pytest.mark.parametrize(
    "name, size",
    [
        ("%written", STORED // 9 + 4),  # the update comes from the chip; the index
        ("%taken", 2 * LAYER + 4),  # one layer of six, read and written; the index
        ("%begun", LAYER),
        ("%near", 0),
        ("%o", 32 * 256 * 2),  # both sides are on the chip
        ("%again", 2 * STORED),
    ],
)
def test_bytes_with_padding_slices_and_memory_on_the_chip(name, size):
    found = {o.instruction.name: o for o in roofline.operations(hlo.parse(TPU))}
    assert found[name].bytes == size


def test_flops_inside_a_fusion():
    assert roofline.flops(roofline.operations(hlo.parse(TPU))) == 2 * 32 * 16 * 256


def _one(line, *parameters):
    """The only operation of a program with one instruction."""
    lines = [f"  %p{n} = {shape} parameter({n})" for n, shape in enumerate(parameters)]
    text = "\n".join(["ENTRY %main (x: f32[]) -> f32[] {", *lines, f"  ROOT %r = {line}", "}"])
    return roofline.operations(hlo.parse(text))[0]


def test_a_batch_of_products_written_as_a_convolution():
    """[B, S, C] by [B, C]: the batch is a dimension of space, spread apart, one step each."""
    line = (
        "f32[32,12,1,289]{3,2,1,0} convolution(%p0, %p1), "
        "window={size=32x12 stride=31x11 lhs_dilate=32x12}, dim_labels=01bf_01oi->01bf"
    )
    one = _one(line, "bf16[32,12,1,64]{3,2,1,0}", "bf16[32,12,289,64]{3,2,1,0}")
    assert one.flops == 2 * 32 * 12 * 289 * 64


def test_a_convolution_with_padding():
    """The border of an image meets fewer weights."""
    line = (
        "f32[2,5,5,7]{3,2,1,0} convolution(%p0, %p1), "
        "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f"
    )
    one = _one(line, "f32[2,5,5,4]{3,2,1,0}", "f32[3,3,4,7]{3,2,1,0}")
    assert one.flops == 2 * 2 * (3 * 5 - 2) ** 2 * 4 * 7
    assert one.float32


def test_products_of_gpu_libraries():
    gemm = (
        "(bf16[2304,250]{0,1}, s8[4096]{0}) custom-call(%p0, %p1), "
        'custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":'
        '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],'
        '"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":[]}}}'
    )
    one = _one(gemm, "bf16[2304,768]{1,0}", "bf16[250,768]{1,0}")
    assert one.flops == 2 * 2304 * 768 * 250
    assert one.bytes == 2 * (2304 * 768 + 768 * 250 + 2304 * 250)  # s8 is room to work in
    assert not one.float32
    images, kernel = "bf16[2,5,5,4]{3,2,1,0}", "bf16[7,1,1,4]{3,2,1,0}"
    convolution = (
        "(bf16[2,5,5,7]{3,2,1,0}, u8[64]{0}) custom-call(%p0, %p1), window={size=1x1}, "
        'dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBiasActivationForward"'
    )
    assert _one(convolution, images, kernel).flops == 2 * 2 * 5 * 5 * 4 * 7
    attention = (
        "(bf16[2,12,8,64]{3,2,1,0}, u8[0]{0}) custom-call(%p0, %p1, %p1), "
        'custom_call_target="__cudnn$fmhaSoftmax"'
    )
    one = _one(attention, "bf16[2,8,12,64]{3,2,1,0}", "bf16[2,16,12,64]{3,2,1,0}")
    assert one.flops == 4 * 2 * 12 * 8 * 16 * 64


def test_of_a_condition_the_dearest_branch_counts():
    x = jnp.zeros((4, 4))
    branches = [lambda x: x, lambda x: x @ x, lambda x: x @ x @ x]
    program = jax.jit(lambda i, x: jax.lax.switch(i, branches, x)).lower(1, x).compile()
    assert roofline.flops(roofline.operations(hlo.parse(program.as_text()))) == 2 * 2 * 4**3


def test_seconds_are_the_longer_of_both():
    chip = roofline.Chip(bfloat16=100.0, float32=50.0, bandwidth=10.0, memory=0.0)
    one = _one("f32[2]{0} add(%p0, %p0)", "f32[2]{0}")
    assert one._replace(flops=300, bytes=20).seconds(chip) == 3
    assert one._replace(flops=300, bytes=20, float32=True).seconds(chip) == 6
    assert one._replace(flops=300, bytes=50).seconds(chip) == 5


def test_costliest_sums_layers():
    found = [
        _one(f'f32[2]{{0}} add(%p0, %p0), metadata={{op_name="blocks_{n}/add"}}', "f32[2]{0}")
        for n in range(3)
    ]
    found = [operation._replace(times=2) for operation in found]
    assert roofline.costliest(found, lambda operation: operation.bytes) == [
        ("blocks_*/add (r)", 3 * 2 * 24, 6)
    ]


def test_chips_by_the_name_that_jax_gives():
    assert roofline.chip("NVIDIA H100 80GB HBM3").bandwidth == 3.35e12
    assert roofline.chip("TPU v5 lite").bfloat16 == 197e12
    assert roofline.chip("TPU v5").bfloat16 == 459e12
    assert roofline.chip("cpu") is None
