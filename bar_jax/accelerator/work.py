"""What the process of a row does.

Processes come from a fork server that has imported the packages and started nothing: an import
takes 15 to 20 s on a fresh machine, and would be paid for by every row.
"""

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from bar_jax.accelerator import rows

# What the fork server imports, so that a row need not.
IMPORTED = ("bar_jax.jobs", "bar_jax.main", "bar_jax.accelerator.right")


def begin(function: Callable[..., int], log: str, *args) -> None:
    """Runs a function in a process of its own, and ends it with the status that it returns.

    Args:
      log: path without its ending: `.out` has what is printed, `.err` the rest.
    """
    os.setsid()  # the driver ends it together with its own processes
    for number, ending in ((1, "out"), (2, "err")):
        file = os.open(f"{log}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(file, number)
    logging.getLogger().handlers.clear()  # what was imported has set up some
    status = 1
    try:
        status = function(*args)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # nothing waits for threads of a runtime that may hang


def probe() -> int:
    """Prints what this machine is, once everything has been imported."""
    import importlib

    for name in IMPORTED:
        importlib.import_module(name)
    from importlib import metadata

    import jax

    from bar_jax.inspection import timing

    devices, names = jax.devices(), ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    results = {
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "memory_bytes": timing.memory_limit(devices[0]),
        "runtime": devices[0].client.platform_version.splitlines()[0],
        "processors": os.cpu_count(),
        "versions": {name: metadata.version(name) for name in names}
        | {"python": sys.version.split()[0]},
    }
    print(json.dumps(results, indent=2))
    return 0


def row(row: rows.Row, arguments: list[str], images: Path, tiny: bool) -> int:
    """Measures a row and prints what it found; returns the exit status."""
    if row.config == rows.RIGHT:
        return _right(row, tiny)
    if "input" in row.parts:
        _write_images(images, tiny)
    from bar_jax import main

    return main.main(["bar_jax", *arguments])


def _right(row: rows.Row, tiny: bool) -> int:
    import jax

    if tiny:
        jax.config.update("jax_num_cpu_devices", 2)
    else:  # a search for the fastest kernels doubles what compilation takes
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
    from bar_jax.accelerator import right

    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    results = right.run(row.parts, tiny)
    print(json.dumps(results, indent=2))
    wrong = [name for name in row.parts if results[name]["ok"] is False]
    if wrong:
        print(f"not right: {', '.join(wrong)}", file=sys.stderr)
    return int(bool(wrong))


def _write_images(folder: Path, tiny: bool) -> None:
    """Photographs' size, and as hard to decode: blurred noise, 512 files of JPEG."""
    import numpy as np
    from PIL import Image, ImageFilter

    classes = ("sharp", "blurred")
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
    width, height, count = (32, 24, 48) if tiny else (500, 375, 512)
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        image = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1 + i % 2))
        image.save(folder / classes[i % 2] / f"{i}.jpg", quality=95)
