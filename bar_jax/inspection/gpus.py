"""NVIDIA GPUs to compile for without having one: `pip install "jax[cuda12]"`, no driver is needed.

XLA is given a description of the GPU, as in jax's own test of this (tests/deviceless_aot_test.py).
Without one nothing can be tried out, so every product is left to cuBLAS.
"""

import jax

from bar_jax.runtime.errors import InputError

# Of the chip (GH100 with 132 processors), which the two share, then of each board: NVIDIA's name,
# bytes of memory, bytes per second.
_CHIP = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49152,
    "shared_memory_per_core": 233472,
    "shared_memory_per_block_optin": 232448,
    "threads_per_core_limit": 2048,
    "core_count": 132,
    "fpus_per_core": 128,
    "block_dim_limit_x": 2147483647,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "l2_cache_size": 52428800,
    "clock_rate_ghz": 1.98,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
}
NAMES = {
    "h100": ("NVIDIA H100 80GB HBM3", 84929347584, 3352320000000),
    "h200": ("NVIDIA H200", 150109880320, 4800000000000),
}
OPTIONS = {"xla_gpu_enable_triton_gemm": False}


def devices(name: str) -> list[jax.Device]:
    """One GPU of that name.

    Raises:
      InputError: the CUDA plugin of this jax is not installed.
    """
    from jax.experimental import topologies

    board, memory, bandwidth = NAMES[name]
    numbers = _CHIP | {"device_memory_size": memory, "memory_bandwidth": bandwidth}
    chip = " ".join(f"{field}: {value}" for field, value in numbers.items())
    target = (
        f"gpu_device_info {{ {chip} cuda_compute_capability {{ major: 9 }} }} "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } '
        f'runtime_version {{ major: 12 minor: 9 }} device_description_str: "{board}"'
    )
    try:
        return topologies.get_topology_desc(
            platform="cuda", topology_name=name, target_config=target, topology="1x1x1"
        ).devices
    except Exception as error:  # whatever the plugin may raise
        reason = str(error).strip().splitlines()[0][:200]
        expected = 'the CUDA plugin of this jax, pip install "jax[cuda12]"'
        raise InputError("describe.devices", f"{name}: {reason}", expected) from error
