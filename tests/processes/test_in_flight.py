"""Many programs may wait for their devices, as between two logged steps, and all have an end."""

import pytest

from tests import running

PROGRAMS = 200  # XLA lets 32 of them wait for a device
CODE = f"""
import sys, jax, numpy as np
from bar_jax.runtime import distributed, mesh
distributed.start(distributed.Cluster("localhost:" + sys.argv[1], 2, int(sys.argv[2])))
mesh = mesh.make_mesh(data=4, fsdp=2, tensor=1)
layout = jax.sharding.NamedSharding(mesh, jax.P(("data", "fsdp")))
x = jax.make_array_from_callback((8,), layout, lambda index: np.ones(8, np.float32)[index])
total = jax.jit(lambda x: x.sum(), out_shardings=jax.sharding.NamedSharding(mesh, jax.P()))
print([float(y) for y in jax.device_get([total(x) for _ in range({PROGRAMS})])])
"""


@pytest.mark.parametrize(
    "devices",
    [
        {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        pytest.param({"XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "4"}, marks=pytest.mark.exhaustive),
    ],
    ids=lambda devices: [*devices][-1],
)
def test_many_programs_in_flight(devices):
    """Four devices of each process: more than some machines have cores."""
    printed = running.two("-c", CODE, **devices)
    assert str([8.0] * PROGRAMS) in printed[0]
