"""Processes of which one needs longer than another to come to their first common step."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
LATE = 35  # seconds; Gloo looks for the others for 30
CODE = f"""
import sys, time, jax, numpy as np
from bar_jax import distributed, mesh
distributed.start(distributed.Cluster("localhost:" + sys.argv[1], 2, int(sys.argv[2])))
mesh = mesh.make_mesh(data=4, fsdp=2, tensor=1)
time.sleep({LATE} * int(sys.argv[2]))
for axes in ("data", ("data", "fsdp")):
    layout = jax.sharding.NamedSharding(mesh, jax.P(axes))
    x = jax.make_array_from_callback((8,), layout, lambda index: np.ones(8, np.float32)[index])
    print(float(jax.jit(lambda x: x.sum(), out_shardings=jax.NamedSharding(mesh, jax.P()))(x)))
"""


def test_one_is_waited_for():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, str(port), str(rank)],
            env=os.environ | {"PYTHONPATH": str(ROOT)} | flags,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), printed[0][1][-2000:]
    assert printed[0][0].count("8.0") == 2
