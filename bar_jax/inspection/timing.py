"""How long a compiled program takes, what it needs, and the largest batch that fits a device."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bar_jax.inspection import roofline
from bar_jax.inspection import trace as trace_lib


class Timed(NamedTuple):
    """What was measured of a program.

    Attributes:
      compile_seconds: of tracing and compilation.
      first_seconds: of its first run, which the others leave out.
      seconds: of each repetition after that one.
      memory: the compiler's count of bytes on a device (arguments, results and temporaries).
      trace: where the time went, see `trace.summary`; None if it was not asked for.
    """

    compile_seconds: float
    first_seconds: float
    seconds: list[float]
    memory: int
    trace: dict[str, object] | None = None


class OutOfMemory(RuntimeError):
    """A program that needs more than a device has, found before it was run."""


def peak_flops(device: jax.Device, dtype: str) -> tuple[float, str]:
    """Peak FLOP/s of one device, from a table or else from a product of large matrices."""
    chip = roofline.chip(device.device_kind)
    if chip:
        return (chip.bfloat16 if dtype == "bfloat16" else chip.float32), "data sheet"
    # Large enough to keep the device busy: until a product takes 20 ms.
    size, seconds = 256, 0.0
    while seconds < 0.02:
        size *= 2
        x = jnp.ones((size, size), dtype)
        seconds = min(timed(jax.jit(jnp.matmul), (x, x), repeats=3).seconds)
    return 2 * size**3 / seconds, f"measured: {size} x {size} product"


def timed(
    function: Callable,
    args: tuple,
    repeats: int,
    feed: Callable[[tuple, object], tuple] = lambda args, out: args,
    trace: str = "",
) -> Timed:
    """Times a jitted function.

    Args:
      feed: (arguments, result) -> the arguments of the next repetition.
      trace: folder for the trace of one more repetition; "": none is made.

    Raises:
      OutOfMemory: the device has less memory than the compiler counts.
    """
    began = time.perf_counter()
    compiled = function.lower(*args).compile()
    compile_seconds = time.perf_counter() - began
    memory, limit = program_bytes(compiled), memory_limit(jax.devices()[0])
    if limit and memory > limit:
        raise OutOfMemory(f"the program needs {memory / 1e9:.1f} of {limit / 1e9:.1f} GB")

    def run(args):
        out = jax.block_until_ready(compiled(*args))
        return feed(args, out)  # the rest of it goes, or two results would be held at a time

    seconds = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        args = run(args)
        seconds.append(rounded(time.perf_counter() - began))
    found = None
    if trace:
        with trace_lib.recorded(trace):
            run(args)
        found = trace_lib.summary(trace)
    return Timed(rounded(compile_seconds), seconds[0], seconds[1:], memory, found)


def sweep(
    measure: Callable[[int], dict[str, object]],
    sizes: Sequence[int],
    first_that_fits: bool,
) -> dict[str, object]:
    """Measures a program at several batch sizes.

    Args:
      measure: batch size -> what was measured, `images_per_second` (or
        `images_per_second_decoded`, which counts then) among it.
      first_that_fits: end with the first that fits.

    Returns:
      What was measured at the batch with the highest rate, and `batches`: all of it, with
      `out_of_memory` for those that did not fit.

    Raises:
      what `measure` raises, if it is not about memory or no size fits.
    """
    found, fits = [], []
    for size in sizes:
        try:
            fits.append({"batch_size": size} | measure(size))
            found.append(fits[-1])
        except (jax.errors.JaxRuntimeError, OutOfMemory) as error:
            if not is_out_of_memory(error) or (size == sizes[-1] and not fits):
                raise
            message = str(error).strip().splitlines()[0][:200]
            found.append({"batch_size": size, "out_of_memory": message})
        if fits and first_that_fits:
            break
    rate = lambda result: result.get(
        "images_per_second_decoded", result.get("images_per_second", result["batch_size"])
    )
    return max(fits, key=rate) | {"batches": found}


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device has too little memory."""
    return isinstance(error, OutOfMemory) or "RESOURCE_EXHAUSTED" in str(error)


def memory_limit(device: jax.Device) -> int:
    """Bytes that JAX may use of a device; 0 where it does not say (CPU)."""
    return (device.memory_stats() or {}).get("bytes_limit", 0)


def program_bytes(compiled: jax.stages.Compiled) -> int:
    """The compiler's count of arguments, results and temporaries on a device."""
    memory = compiled.memory_analysis()
    size = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return size + memory.temp_size_in_bytes - memory.alias_size_in_bytes


def rates(flops: int, batch: int, seconds: list[float], peak: float) -> dict[str, float]:
    """Arithmetic of a program that takes `flops` for a batch."""
    rate = flops / statistics.median(seconds)
    return {
        "flops_per_image": flops // batch,
        "flops_per_second": rounded(rate),
        "fraction_of_peak": rounded(rate / peak),
    }


def rounded(number: float) -> float:
    """Rounded to four digits, more than a timing has."""
    return float(f"{number:.4g}")
