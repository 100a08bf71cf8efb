"""Tests of bar_jax/generators/writing.py: what its compiled loop does to the KV cache."""

import importlib.util
import math
import re

import jax
import jax.numpy as jnp
import pytest
from flax.core import meta
from jax.sharding import SingleDeviceSharding

from bar_jax.generators.causal import CausalTransformer
from bar_jax.generators.request import Request
from bar_jax.generators.settings import Settings
from bar_jax.generators.writing import write_tokens
from bar_jax.inspection import plan

BATCH, GRID, BITS = 4, (6, 10), 3
ROWS, POSITIONS = 2 * BATCH, 64  # with guidance; 1 + 3 + 60


def compiled(attention, device, width=32, dtype=jnp.float32):
    """The text of a program that writes all tokens of a batch with guidance."""
    trunk = CausalTransformer(
        BITS, GRID, 5, width, depth=2, heads=4, output_width=BITS, class_repeats=3, dtype=dtype
    )
    length = trunk.num_tokens
    on_device = lambda shape, dtype: jax.ShapeDtypeStruct(
        shape, dtype, sharding=SingleDeviceSharding(device)
    )
    tokens = jax.ShapeDtypeStruct((1, length, BITS), jnp.uint8)
    integers = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    params = jax.eval_shape(trunk.init, jax.random.key(0), tokens, integers(1), integers(1, length))
    params = jax.tree.map(lambda x: on_device(x.shape, x.dtype), meta.unbox(params)["params"])

    def draw(z, i):
        return (z[:BATCH] > z[BATCH:]).astype(jnp.uint8), None

    def write(params, labels, order):
        request = Request(labels, settings=Settings(guided=True, attention=attention))
        return write_tokens(trunk, params, request, order, draw)

    arguments = on_device((BATCH,), jnp.int32), on_device((BATCH, length), jnp.int32)
    return jax.jit(write).lower(params, *arguments).compile().as_text()


def moved(text, elements):
    """Copies and transpositions of so many elements, all but those before and after the loop."""
    inside = re.sub(r"^ENTRY.*?^}", "", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"= (\w+\[([\d,]+)\]\S*) (copy|transpose)\(", inside)
    return [
        f"{kind} {shape}"
        for shape, sizes, kind in found
        if math.prod(map(int, sizes.split(","))) == elements
    ]


@pytest.fixture(scope="module")
def cpu():
    return jax.local_devices()[0]


def test_the_loop_copies_no_cache(cpu):
    """Writing a token changes the cache in place, and reading it turns nothing around."""
    text = compiled("xla", cpu)
    assert f"f32[{ROWS},4,{POSITIONS},8]" in text  # it is this that would be copied
    assert moved(text, ROWS * POSITIONS * 32) == []


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_the_loop_copies_and_pads_no_cache_on_a_tpu():
    text = compiled("rows", plan.devices("v5e:2x2")[0], width=256, dtype=jnp.bfloat16)
    assert moved(text, ROWS * POSITIONS * 256) == []
    # Tiles of 8 positions x 128 channels.
    assert re.search(rf"bf16\[{ROWS},{POSITIONS},256\]{{2,\d,\d:T\(8,128\)\(2,1\)", text)
