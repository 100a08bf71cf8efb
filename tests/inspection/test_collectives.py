"""Tests of bar_jax/inspection/collectives.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bar_jax.inspection import collectives, hlo
from bar_jax.inspection.collectives import Collective
from bar_jax.runtime.mesh import make_mesh

ITERATIONS = 5


@pytest.fixture(scope="module")
def found():
    """Of a program with one collective of each kind, on 2 x 4 devices, those in a loop but one."""
    mesh = make_mesh(2, 4, 1)

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=P(("data", "fsdp")), out_specs=P(), check_vma=False
    )
    def program(x):
        def body(carry, _):
            whole = jax.lax.all_gather(jnp.cos(carry), "fsdp", tiled=True)  # [8, 6] -> [32, 6]
            carry += jax.lax.psum_scatter(jnp.sin(whole), "fsdp", tiled=True)
            carry = jax.lax.ppermute(jnp.cos(carry), "fsdp", [(i, (i + 1) % 4) for i in range(4)])
            carry = jax.lax.all_to_all(jnp.sin(carry), "data", 0, 0, tiled=True)
            return carry, None

        return jax.lax.psum(jax.lax.scan(body, x, length=ITERATIONS)[0], ("data", "fsdp"))

    compiled = jax.jit(program).lower(jnp.zeros((64, 6))).compile()
    return {c.kind: c for c in collectives.collectives(hlo.parse(compiled.as_text()))}


ALONG_FSDP = [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    "kind, size, sent, times, groups",
    [
        ("all-gather", 32 * 6 * 4, 24 * 6 * 4, ITERATIONS, ALONG_FSDP),
        ("reduce-scatter", 32 * 6 * 4, 24 * 6 * 4, ITERATIONS, ALONG_FSDP),
        ("collective-permute", 8 * 6 * 4, 8 * 6 * 4, ITERATIONS, ALONG_FSDP),
        ("all-to-all", 8 * 6 * 4, 4 * 6 * 4, ITERATIONS, [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("all-reduce", 8 * 6 * 4, 2 * 7 * 6 * 4, 1, [list(range(8))]),
    ],
)
def test_collectives_of_a_program(found, kind, size, sent, times, groups):
    """Kind, bytes of the array, bytes that a device sends, how often, and between whom."""
    one = found[kind]
    assert (one.bytes, one.sent, one.times) == (size, sent, times)
    assert one.groups.tolist() == groups


def test_nothing_else_is_found(found):
    assert len(found) == 5


def test_sums_by_kind():
    pair = np.array([[0, 1]])
    found = [
        Collective("all-reduce", 100, pair, 3, ""),
        Collective("all-reduce", 40, pair, 1, ""),
        Collective("all-gather", 8, pair, 2, ""),
    ]
    assert collectives.by_kind(found) == {
        "all-gather": dict(times=2, bytes=16, sent_bytes=8, largest_bytes=8),
        "all-reduce": dict(times=4, bytes=340, sent_bytes=340, largest_bytes=100),
    }


# As the TPU's compiler writes: the counter of a loop goes from 1 to 9 by 2, and a gather that
# overlaps with other work is a fusion before the loop and another in it, with one channel.
TPU = """HloModule m, is_scheduled=true, num_partitions=4

%async_collective_fusion.1 (p: bf16[2,8]) -> bf16[8,8] {
  %p = bf16[2,8]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %g = bf16[8,8]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['a'=4] {'a'}
}

%async_collective_fusion.2 (q: bf16[2,8]) -> bf16[8,8] {
  %q = bf16[2,8]{1,0} parameter(0)
  ROOT %h = bf16[8,8]{1,0} all-gather(%q), channel_id=7, replica_groups=mesh['a'=4] {'a'}
}

%body (b: (u32[], bf16[2,8])) -> (u32[], bf16[2,8]) {
  %b = (u32[]{:T(128)}, bf16[2,8]{1,0}) parameter(0)
  %i = u32[] get-tuple-element(%b), index=0
  %x = bf16[2,8]{1,0} get-tuple-element(%b), index=1
  %two = u32[] constant(2)
  %next = u32[] add(%i, %two)
  %again = bf16[8,8]{1,0} fusion(%x), kind=kCustom, calls=%async_collective_fusion.2
  %s = (bf16[2,8]{1,0}, bf16[2,8]{1,0}, u32[]) collective-permute-start(%x), channel_id=8, \
source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %d = bf16[2,8]{1,0} collective-permute-done(%s)
  ROOT %t = (u32[], bf16[2,8]{1,0}) tuple(%next, %d)
}

%condition (c: (u32[], bf16[2,8])) -> pred[] {
  %c = (u32[]{:T(128)}, bf16[2,8]{1,0}) parameter(0)
  %j = u32[] get-tuple-element(%c), index=0
  %nine = u32[] constant(9)
  ROOT %less = pred[] compare(%j, %nine), direction=LT
}

ENTRY %main (y: bf16[2,8]) -> (u32[], bf16[2,8]) {
  %y = bf16[2,8]{1,0} parameter(0)
  %begun = bf16[8,8]{1,0} fusion(%y), kind=kCustom, calls=%async_collective_fusion.1
  %one = u32[] constant(1)
  %copied = u32[] copy(%one)
  %start = (u32[], bf16[2,8]{1,0}) tuple(%copied, %y)
  ROOT %loop = (u32[], bf16[2,8]{1,0}) while(%start), condition=%condition, body=%body
}
"""


def test_loops_and_overlap_of_a_tpu():
    """The loop runs four times; the gather, in two places, once."""
    gather, permute = collectives.collectives(hlo.parse(TPU))
    assert (gather.kind, gather.times, gather.bytes) == ("all-gather", 1, 8 * 8 * 2)
    assert (permute.kind, permute.times, permute.bytes) == ("collective-permute", 4, 2 * 8 * 2)


def test_a_reduction_that_keeps_its_share_is_a_scatter():
    """The TPU's compiler writes it as a fusion of a reduction and a slice."""
    text = TPU.replace("all-gather(", "all-reduce(").replace(
        "%async_collective", "%all-reduce-scatter"
    )
    assert collectives.collectives(hlo.parse(text))[0].kind == "reduce-scatter"


@pytest.mark.parametrize(
    "text, groups",
    [
        ("{{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", [[0, 1], [2, 3]]),
        ("mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
        ("mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
    ],
)
def test_forms_of_groups(text, groups):
    """Each form in which HLO names the devices that take part together."""
    text = TPU.replace("channel_id=7, replica_groups=mesh['a'=4] {'a'}", f"replica_groups={text}")
    assert collectives.collectives(hlo.parse(text))[0].groups.tolist() == groups


def test_unknown_forms_of_groups_are_refused():
    with pytest.raises(ValueError, match="unknown form of groups"):
        collectives.collectives(hlo.parse(TPU.replace("replica_groups=mesh", "replica_groups=new")))


@pytest.mark.parametrize(
    "groups, rate",
    [
        ([range(8)], 450e9),  # NVLink
        ([range(0, 64, 8)], 50e9),  # one of each node: its own adapter
        ([range(16)], 400e9),  # two nodes: all adapters
    ],
)
def test_seconds_on_h100(groups, rate):
    one = Collective("all-gather", 8e9, np.array([list(group) for group in groups]), 2, "")
    assert collectives.seconds_on_h100([one]) == pytest.approx(2 * one.sent / rate)


def test_seconds_on_v5e():
    """A gather of 4 GB by 4 chips, two links of 50 GB/s each."""
    one = Collective("all-gather", 4e9, np.arange(4)[None], 1, "")
    assert collectives.seconds_on_v5e([one]) == pytest.approx(3e9 / 100e9)
