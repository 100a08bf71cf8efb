"""Processes of which one needs longer than another to come to their first common step."""

import pytest

from tests import two_processes

pytestmark = pytest.mark.slow
LATE = 35  # seconds; Gloo looks for the others for 30
CODE = f"""
import sys, time, jax, numpy as np
from bar_jax.runtime import distributed, mesh
distributed.start(distributed.Cluster("localhost:" + sys.argv[1], 2, int(sys.argv[2])))
mesh = mesh.make_mesh(data=4, fsdp=2, tensor=1)
time.sleep({LATE} * int(sys.argv[2]))
for axes in ("data", ("data", "fsdp")):
    layout = jax.sharding.NamedSharding(mesh, jax.P(axes))
    x = jax.make_array_from_callback((8,), layout, lambda index: np.ones(8, np.float32)[index])
    print(float(jax.jit(lambda x: x.sum(), out_shardings=jax.NamedSharding(mesh, jax.P()))(x)))
"""


def test_one_is_waited_for():
    flags = "--xla_force_host_platform_device_count=4"
    printed = two_processes.run("-c", CODE, XLA_FLAGS=flags)
    assert printed[0].count("8.0") == 2
