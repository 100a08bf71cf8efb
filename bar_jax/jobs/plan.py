"""Training steps compiled for a layout that need not be here, and never run.

`describe.devices` names the devices: those present, so many virtual ones of the CPU, or a slice of
TPUs, for which libtpu compiles on any machine (`pip install libtpu`, of the version that this JAX
names). Nothing is allocated.

The compilers differ. CPU's keeps products in float32 where the config says bfloat16, reduces whole
gradients where others scatter them, and holds more temporaries: its numbers are upper bounds.
"""

import math
import os
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bar_jax import collectives, faults, frozen, hlo, models, roofline
from bar_jax.config import real_valued
from bar_jax.errors import InputError
from bar_jax.generators import make_generator
from bar_jax.generators.settings import sampling_settings
from bar_jax.jobs import basis
from bar_jax.jobs.sample import drawn, pixels
from bar_jax.jobs.train_generator import make_loss_fn
from bar_jax.jobs.train_tokenizer import make_program, with_both_players
from bar_jax.mesh import batch_sharding, batch_ways, replicated
from bar_jax.tokenizers import cached_as, make_tokenizer
from bar_jax.training.players import Program, one_player
from bar_jax.training.step import init_state

# A fifth of the time for a TPU; of BAR-B's step the temporaries were 2 % apart.
QUICK = {"exec_time_optimization_effort": -1.0}
NAMED = 8  # operations of each list
LARGE = 2**17  # elements of an array that is worth a line


def devices(name: str) -> list[jax.Device]:
    """The devices that `describe.devices` names.

    Raises:
      InputError: more virtual ones than JAX, which has started already, can make; a TPU slice that
        does not exist, or no libtpu.
    """
    if not name:
        return jax.devices()
    if name.isdigit():
        return _virtual(int(name))
    # It need not lock TPUs that are not used, nor ask their machine what they are.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except Exception as error:  # whatever libtpu may raise
        reason = str(error).strip().splitlines()[0][:200]
        expected = "a TPU slice such as v5e:16x16, and libtpu, see bar_jax/jobs/plan.py"
        raise InputError("describe.devices", f"{name}: {reason}", expected) from error


def _virtual(number: int) -> list[jax.Device]:
    """So many devices of the CPU."""
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", number)
    except RuntimeError:  # JAX has started
        pass
    found = jax.devices("cpu")
    if len(found) < number:
        given = f"{number}, where JAX has started with {len(found)} of the CPU"
        expected = f"XLA_FLAGS=--xla_force_host_platform_device_count={number} in the environment"
        raise InputError("describe.devices", given, expected)
    return found[:number]


def generator_program(
    config: ConfigDict, mesh: jax.sharding.Mesh | None, generator: nn.Module
) -> Program:
    """What `train_generator` trains, without data: in raster order from the first step on.

    Args:
      mesh: where a basis starts; None for a program that is not run.
    """
    return one_player(
        lambda key: models.init_generator(generator, key),
        make_loss_fn(generator, make_tokenizer(config), 0, 0),
        config.train_generator,
        steps=2,
        warmup=1,
        **basis.training(config, mesh, generator),
    )


def compiled_step(config: ConfigDict, mesh: jax.sharding.Mesh, step: str) -> dict[str, object]:
    """What the compiler says of one training step on a mesh.

    Args:
      step: of `config.STEPS`; the tokenizer's is one that the discriminator takes part in, if there
        is one.

    Returns:
      `state_bytes_per_device`: of what training changes, by part. `memory_bytes_per_device`: of the
      step's arguments (state, batch, frozen networks), of its temporaries, and of all together (the
      new state takes the place of the old). `collectives`: see `collectives.by_kind`; and the
      seconds that these take on two interconnects. If the step does not fit the device, what the
      compiler said as `does_not_fit` instead of the last three.

    Raises:
      InputError: no such step; a batch that the mesh does not divide.
    """
    section = config[f"train_{'generator' if step == 'generator' else 'tokenizer'}"]
    ways, size = batch_ways(mesh) * section.accumulate, section.batch_size
    if size % ways:
        name = "train_generator" if step == "generator" else "train_tokenizer"
        raise InputError(f"{name}.batch_size", str(size), f"a multiple of {ways}")
    program, batch, number = _program(config, mesh, step)
    state = init_state(program.init, jax.random.key(0), mesh)[1]
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    batch = {name: place(x, batch_sharding(mesh)) for name, x in batch.items()}
    key = place(jax.eval_shape(lambda: jax.random.key(0)), replicated(mesh))
    layout = jax.tree.map(lambda leaf: leaf.sharding, state)
    function = jax.jit(
        program.step(number), donate_argnums=0, out_shardings=(layout, replicated(mesh))
    )
    with jax.set_mesh(mesh):
        told = {
            "state_bytes_per_device": {
                "parameters": layout_bytes(state.params),
                "ema": layout_bytes(state.ema),
                "optimizer": layout_bytes(state.opt_state),
                "discriminator": layout_bytes(state.discriminator),
            },
            "batch_size": size,
            "accumulate": section.accumulate,
            "remat": section.remat,
            "compiled_for": mesh.devices.flat[0].device_kind,
        }
        return told | compiled(function.lower(state, batch, key, program.frozen), mesh, size)


def compiled_sampler(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, object]:
    """What the compiler says of the sampler at `sample.batch_size`, and of decoding to pixels.

    Returns:
      `batch_size`; `tokens` and `pixels`, each what `compiled` gives.

    Raises:
      InputError: a batch that the mesh does not divide.
    """
    size, ways = config.sample.batch_size, batch_ways(mesh)
    if size % ways:
        raise InputError("sample.batch_size", str(size), f"a multiple of {ways}")
    generator, tokenizer = make_generator(config), make_tokenizer(config)
    shape = lambda sizes, dtype, sharding: jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)
    numbers, rows = replicated(mesh), batch_sharding(mesh)
    number = shape((), jnp.float32, numbers)
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(mesh):
        drawing = drawn.lower(
            generator,
            sampling_settings(config),
            models.param_shapes(lambda key: models.init_generator(generator, key), mesh),
            {name: shape((size,), jnp.int32, rows) for name in ("index", "label")},
            *(number, number, shape(key.shape, key.dtype, numbers)),
        )
        decoding = pixels.lower(
            tokenizer,
            models.param_shapes(lambda key: models.init_tokenizer(tokenizer, key), mesh),
            shape((size, *generator.token_shape), generator.token_dtype, rows),
        )
        return {
            "batch_size": size,
            "compiled_for": mesh.devices.flat[0].device_kind,
            "tokens": compiled(drawing, mesh, size, cache_elements(config)),
            "pixels": compiled(decoding, mesh, size),
        }


def compiled(
    lowered: jax.stages.Lowered, mesh: jax.sharding.Mesh, images: int, cache: int = 0
) -> dict[str, object]:
    """Compiles a program for a batch of images, and tells what the result holds, does and sends.

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
        program = lowered.compile(compiler_options=QUICK)
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
    told = {
        "flops": flops,
        "bytes": size,
        "flops_per_image": flops * mesh.size // images,
        "bytes_per_image": size * mesh.size // images,
        "flops_with_loops_once": sum(operation.flops for operation in found),
    }
    loop = roofline.main_loop(found)
    if loop:
        turns = max(1, loop[0].loops[0].iterations)
        told["loop"] = {
            "iterations": turns,
            "flops": roofline.flops(loop) // turns,
            "bytes": roofline.moved(loop) // turns,
        }
    chip = roofline.chip(mesh.devices.flat[0].device_kind)
    if chip is None:
        return told
    wide = roofline.flops(operation for operation in found if operation.float32)
    arithmetic = wide / chip.float32 + (flops - wide) / chip.bfloat16
    traffic = size / chip.bandwidth
    by_time = roofline.costliest(found, lambda operation: operation.seconds(chip), NAMED)
    return told | {
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
    """What a compiled program does that it might not need to do.

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
    wide = dict(faults.float32_arrays(found, LARGE))
    return {
        "copies_share": _rounded(roofline.moved(copies) / max(1, roofline.moved(found))),
        "copies": moved(copies, lambda operation: operation.bytes),
        "cache_copies": [
            f"{i.opcode} {i.shape} {i.source}" for i in faults.loop_copies(program, cache)[:NAMED]
        ]
        if cache
        else [],
        "float32_products": moved(faults.float32_products(found), lambda own: own.flops),
        "float32_arrays": moved(wide, lambda operation: wide[operation]),
        "host_transfers": [f"{i.opcode} {i.source}" for i in faults.host_transfers(program)],
        "collectives_in_loops": collectives.by_kind([c for c in sent if c.times > 1]),
    }


def cache_elements(config: ConfigDict) -> int:
    """Elements of the keys, or values, of a layer while the configured sampler runs; 0: no cache.

    Without what a layout may add to the positions.
    """
    generator = make_generator(config)
    network = getattr(generator, "trunk", None) or generator.host
    if config.model.generator.kind == "mar":
        return 0
    rows = config.sample.batch_size * (2 if config.sample.guidance_scale > 1 else 1)
    tokens = getattr(network, "num_tokens", None) or network.length
    return rows * tokens * network.width


def _compilers_count(program: jax.stages.Compiled) -> dict[str, float]:
    """What the compiler counts, loops once and elementwise FLOPs too; {} if it counts nothing."""
    counted = program.cost_analysis() or {}
    names = {"flops": "compilers_flops", "bytes accessed": "compilers_bytes"}
    return {own: counted[name] for name, own in names.items() if name in counted}


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")


def layout_bytes(shapes: object) -> int:
    """Bytes on each device of a tree of shapes with their shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(shapes)
    )


def _program(config, mesh, step) -> tuple[Program, dict[str, jax.ShapeDtypeStruct], int]:
    """What is trained, what a batch looks like, and the number of a step that is like most."""
    shape = jax.ShapeDtypeStruct
    if step == "generator":
        section = config.train_generator
        generator = make_generator(config, section.remat)
        kind, width = cached_as(config)
        tokens = (section.batch_size, generator.token_shape[0], width)
        batch = {
            "tokens": shape(tokens, jnp.float32 if kind == "float32" else jnp.uint8),
            "label": shape((section.batch_size,), jnp.int32),
        }
        return generator_program(config, None, generator), batch, 0
    if real_valued(config):
        raise InputError("describe.steps", step, "generator: no tokenizer is trained here")
    section, size = config.train_tokenizer, config.data.image_size
    if step == "discriminator" and not section.loss.gan:
        raise InputError("describe.steps", step, "generator | tokenizer; or loss.gan > 0")
    networks = frozen.shapes(config, mesh)
    program = make_program(with_both_players(config), networks, examples=1, steps=4, warmup=1)
    batch = {"image": shape((section.batch_size, size, size, 3), jnp.uint8)}
    return program, batch, int(step == "discriminator")
