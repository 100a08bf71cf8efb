"""Processes of which one needs longer than another to come to their first common step."""

import pytest

from tests import running

pytestmark = pytest.mark.exhaustive
LATE = 35  # seconds; Gloo looks for the others for 30
CODE = f"""
import sys, time, jax, numpy as np
from bar_jax.runtime import distributed, mesh
distributed.start(distributed.Cluster("localhost:" + sys.argv[1], 2, int(sys.argv[2])))
mesh = mesh.make_mesh(data=2, fsdp=1, tensor=1)
time.sleep({LATE} * int(sys.argv[2]))
for axes in ("data", ("data", "fsdp")):
    layout = jax.sharding.NamedSharding(mesh, jax.P(axes))
    x = jax.make_array_from_callback((8,), layout, lambda index: np.ones(8, np.float32)[index])
    print(float(jax.jit(lambda x: x.sum(), out_shardings=jax.NamedSharding(mesh, jax.P()))(x)))
"""


def test_one_is_waited_for():
    printed = running.two("-c", CODE)
    assert printed[0].count("8.0") == 2
