"""What a compiler says of a program, and what is read in the program that it made."""

import time

import jax

from bar_jax.inspection import collectives, faults, gpus, hlo, roofline

# A fifth of the time for a TPU; of BAR-B's step the temporaries were 2 % apart. (A sampler's
# program and time stay the same.)
QUICK = {"exec_time_optimization_effort": -1.0}
NAMED = 8  # operations of each list
LARGE = 2**17  # elements of an array that is worth a line


def compile_and_tell(
    lowered: jax.stages.Lowered, mesh: jax.sharding.Mesh, images: int, cache: int = 0
) -> dict[str, object]:
    """Compiles a program for a batch of images; reports what it holds, computes and sends.

    Args:
      cache: elements of one array of its KV cache; 0: there is none.

    Returns:
      `compile_seconds`; `memory_bytes_per_device`: of arguments, temporaries, and all together
      (a result that takes an argument's place counts once); `collectives` and the seconds that
      these take on two interconnects; `work`: see `work`; `faults`: see `look_for_faults`. If it
      does not fit the device, only `does_not_fit`: what the compiler said.
    """
    began = time.monotonic()
    try:
        program = _compile(lowered, mesh)
    except jax.errors.JaxRuntimeError as error:
        code, _, reason = str(error).partition(": ")
        if code != "RESOURCE_EXHAUSTED":
            raise
        return {"does_not_fit": reason.splitlines()[0]}
    seconds, memory = time.monotonic() - began, program.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    held = memory.argument_size_in_bytes + results
    text = hlo.parse(program.as_text())
    found = collectives.collectives(text)
    return {
        "compile_seconds": round(seconds, 1),
        "memory_bytes_per_device": {
            "arguments": memory.argument_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "total": held + memory.temp_size_in_bytes,
        },
        "collectives": collectives.by_kind(found),
        "communication_seconds": {
            "TPU v5e": round(collectives.seconds_on_v5e(found), 4),
            "H100": round(collectives.seconds_on_h100(found), 4),
        },
        "work": work(text, mesh, images) | _compilers_count(program),
        "faults": look_for_faults(text, found, cache),
    }


def work(program: hlo.Program, mesh: jax.sharding.Mesh, images: int) -> dict[str, object]:
    """FLOPs and bytes moved of a compiled program, and the time that they take at least.

    Returns:
      Of each device `flops` and `bytes`, see `roofline`; of all devices `flops_per_image` and
      `bytes_per_image`. `loop`: of the loop that moves most, a sampler's over tokens, how often it
      runs, and FLOPs and bytes of one turn. `flops_with_loops_once`: as compilers count. Where the
      chip is known `seconds`: of all arithmetic, of all traffic, of the longer of both, and of the
      longer of both of each kernel, one after another; `bound_by`; and the `costliest` operations
      with their seconds.
    """
    found = roofline.operations(program)
    flops, size = roofline.flops(found), roofline.moved(found)
    report = {
        "flops": flops,
        "bytes": size,
        "flops_per_image": flops * mesh.size // images,
        "bytes_per_image": size * mesh.size // images,
        "flops_with_loops_once": sum(operation.flops for operation in found),
    }
    loop = roofline.main_loop(found)
    if loop:
        turns = max(1, loop[0].loops[0].iterations)
        report["loop"] = {
            "iterations": turns,
            "flops": roofline.flops(loop) // turns,
            "bytes": roofline.moved(loop) // turns,
        }
    chip = roofline.chip(mesh.devices.flat[0].device_kind)
    if chip is None:
        return report
    wide = roofline.flops(operation for operation in found if operation.float32)
    arithmetic = wide / chip.float32 + (flops - wide) / chip.bfloat16
    traffic = size / chip.bandwidth
    by_time = roofline.costliest(found, lambda operation: operation.seconds(chip), NAMED)
    return report | {
        "seconds": {
            "arithmetic": _rounded(arithmetic),
            "traffic": _rounded(traffic),
            "roofline": _rounded(max(arithmetic, traffic)),
            "one_after_another": _rounded(sum(o.times * o.seconds(chip) for o in found)),
        },
        "bound_by": "arithmetic" if arithmetic > traffic else "traffic",
        "costliest": {name: _rounded(seconds) for name, seconds, _ in by_time},
    }


def look_for_faults(
    program: hlo.Program, sent: list[collectives.Collective], cache: int
) -> dict[str, object]:
    """What a compiled program may do needlessly.

    Returns:
      `copies_share`, `copies`: of all bytes the part that copies, transposes, joins, pads and casts
      move, and those that move most, with their bytes. `cache_copies`: shapes that a loop writes
      anew, as large as an array of the KV cache. `float32_products`: with their FLOPs.
      `float32_arrays`: the largest sums of bytes written. `host_transfers`: in loops.
      `collectives_in_loops`: kernels that are gathered for each token, say.
    """
    found = roofline.operations(program)
    copies = faults.moves(program, found)
    moved = lambda operations, key: {
        name: total for name, total, _ in roofline.costliest(operations, key, NAMED)
    }
    wide = faults.float32_arrays(found, LARGE)
    return {
        "copies_share": _rounded(roofline.moved(copies) / max(1, roofline.moved(found))),
        "copies": moved(copies, lambda operation: operation.bytes),
        "cache_copies": [
            f"{i.opcode} {i.shape} {i.source}" for i in faults.loop_copies(program, cache)[:NAMED]
        ]
        if cache
        else [],
        "float32_products": moved(faults.float32_products(found), lambda own: own.flops),
        "float32_arrays": moved(wide, lambda operation: operation.bytes),
        "host_transfers": [f"{i.opcode} {i.source}" for i in faults.host_transfers(program)],
        "collectives_in_loops": collectives.by_kind([c for c in sent if c.times > 1]),
    }


def _compile(lowered: jax.stages.Lowered, mesh: jax.sharding.Mesh) -> jax.stages.Compiled:
    """Quickly, if it can be; on a GPU, which may not be here, without what has to be tried out."""
    on_gpu = mesh.devices.flat[0].platform in ("cuda", "gpu")
    options = gpus.OPTIONS if on_gpu else {}
    try:
        return lowered.compile(compiler_options=QUICK | options)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):  # as of jax 0.12
            raise
    return lowered.compile(compiler_options=options)


def _compilers_count(program: jax.stages.Compiled) -> dict[str, float]:
    """What the compiler counts, loops once and elementwise FLOPs too; {} if it counts nothing."""
    counted = program.cost_analysis() or {}
    names = {"flops": "compilers_flops", "bytes accessed": "compilers_bytes"}
    return {own: counted[name] for name, own in names.items() if name in counted}


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")
