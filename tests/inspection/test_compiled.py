"""Tests of bar_jax/inspection/compiled.py."""

import jax
import jax.numpy as jnp
import pytest

from bar_jax.inspection import roofline
from bar_jax.inspection.compiled import compile_and_tell
from bar_jax.runtime.mesh import make_mesh

TURNS, ROWS, WIDTH = 6, 8, 16


@pytest.fixture(scope="module")
def told():
    """Of a loop of products on a chip of known speed, two images."""

    def program(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=TURNS)[0]

    lowered = jax.jit(program).lower(jnp.zeros((ROWS, WIDTH)), jnp.zeros((WIDTH, WIDTH)))
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(roofline.CHIPS, "cpu", roofline.Chip(2e6, 1e6, 1e12, 1e9))
        return compile_and_tell(lowered, mesh, 2)


def test_work(told):
    """Products of float32, for which the chip takes twice as long."""
    work, turn = told["work"], 2 * ROWS * WIDTH * WIDTH
    assert work["flops"] == 2 * work["flops_per_image"] == TURNS * turn
    assert work["flops_with_loops_once"] == turn
    assert (work["loop"]["iterations"], work["loop"]["flops"]) == (TURNS, turn)
    assert work["bytes"] >= 4 * TURNS * (2 * ROWS * WIDTH + WIDTH * WIDTH)
    assert work["bound_by"] == "arithmetic"
    assert work["seconds"]["roofline"] == pytest.approx(TURNS * turn / 1e6, rel=1e-3)
    assert work["seconds"]["one_after_another"] >= work["seconds"]["roofline"]


def test_compilers_own_count(told):
    """It counts the loop once, and tanh too."""
    work = told["work"]
    assert 1 <= work["compilers_flops"] / work["flops_with_loops_once"] < 1.5


def test_memory_and_faults(told):
    held = told["memory_bytes_per_device"]
    assert held["arguments"] == 4 * (ROWS * WIDTH + WIDTH * WIDTH)
    faults = told["faults"]
    assert sum(faults["float32_products"].values()) == told["work"]["flops"]
    assert faults["host_transfers"] == faults["cache_copies"] == []
