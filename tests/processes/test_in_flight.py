"""Many programs may wait for their devices, as between two logged steps, and all have an end."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = 200  # XLA lets 32 of them wait for a device
CODE = f"""
import sys, jax, numpy as np
from bar_jax import distributed, mesh
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
        {"XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "4"},
    ],
    ids=lambda devices: [*devices][-1],
)
def test_many_programs_in_flight(devices):
    """Four devices of each process: more than some machines have cores."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | devices
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, str(port), str(rank)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), printed[0][1][-2000:]
    assert str([8.0] * PROGRAMS) in printed[0][0]
