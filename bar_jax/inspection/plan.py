"""Training steps and samplers compiled for a layout that need not be here, and never run.

`describe.devices` names the devices: those present, so many virtual ones of the CPU, a slice of
TPUs, for which libtpu compiles on any machine (`pip install libtpu`, of the version that this JAX
names), or a GPU (see `gpus`). Nothing is allocated.

The compilers differ. CPU's keeps products in float32 where the config says bfloat16, reduces whole
gradients where others scatter them, and holds more temporaries: its numbers are upper bounds.
"""

import functools
import math
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bar_jax import generators
from bar_jax.data.codec import pixels
from bar_jax.generators import make_generator, sampling_settings
from bar_jax.generators.request import Request
from bar_jax.inspection import gpus
from bar_jax.inspection.compiled import compile_and_tell
from bar_jax.pretrained import frozen
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.mesh import batch_sharding, batch_ways, replicated
from bar_jax.sampling.draw import draw_tokens
from bar_jax.tokenizers import cached_as, is_trained, make_tokenizer
from bar_jax.training import basis, restore
from bar_jax.training import generator as generator_lib
from bar_jax.training import tokenizer as tokenizer_lib
from bar_jax.training.optimizer import Durations
from bar_jax.training.step import Batch, Program, Step, TrainState, init_state


def devices(name: str) -> list[jax.Device]:
    """The devices that `describe.devices` names.

    Raises:
      InputError: more virtual ones than JAX, which has started already, can make; a TPU slice that
        does not exist, or no libtpu; no CUDA plugin.
    """
    if not name:
        return jax.devices()
    if name.isdigit():
        return _virtual(int(name))
    if name in gpus.NAMES:
        return gpus.devices(name)
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
        expected = "a TPU slice such as v5e:16x16, and libtpu, see bar_jax/inspection/plan.py"
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
    return generator_lib.make_program(
        generator,
        generator_lib.make_loss_fn(generator, make_tokenizer(config), 0, 0),
        config.train_generator,
        Durations(steps=2, warmup=1),
        basis.training(config, mesh, generator),
    )


def tokenizer_program(config: ConfigDict, networks: frozen.Networks) -> Program:
    """What `train_tokenizer` trains, without data: with its discriminator from the first step on.

    Args:
      networks: parameters of the frozen networks, or their shapes.
    """
    config = tokenizer_lib.with_discriminator_at_once(config)
    return tokenizer_lib.make_program(config, networks, Durations(steps=4, warmup=1), images=1)


def compiled_step(config: ConfigDict, mesh: jax.sharding.Mesh, step: str) -> dict[str, object]:
    """What the compiler says of one training step on a mesh.

    Args:
      step: of `describe.steps`; the tokenizer's is one that the discriminator takes part in, if
        there is one.

    Returns:
      `state_bytes_per_device`: of what training changes, by part. `memory_bytes_per_device`: of the
      step's arguments (state, batch, frozen networks), of its temporaries, and of all together (the
      new state takes the place of the old). `collectives`: see `collectives.by_kind`; and the
      seconds that these take on two interconnects. If the step does not fit the device, what the
      compiler said as `does_not_fit` instead of the last three.

    Raises:
      InputError: no such step; a batch that the mesh does not divide.
    """
    section = _section(config, step)
    function, arguments = step_and_shapes(config, mesh, step)
    state = arguments[0]
    layout = jax.tree.map(lambda leaf: leaf.sharding, state)
    function = jax.jit(function, donate_argnums=0, out_shardings=(layout, replicated(mesh)))
    with jax.set_mesh(mesh):
        told = {
            "state_bytes_per_device": {
                "parameters": layout_bytes(state.params),
                "ema": layout_bytes(state.ema),
                "optimizer": layout_bytes(state.opt_state),
                "discriminator": layout_bytes(state.discriminator),
            },
            "batch_size": section.batch_size,
            "accumulate": section.accumulate,
            "remat": section.remat,
            "compiled_for": mesh.devices.flat[0].device_kind,
        }
        return told | compile_and_tell(function.lower(*arguments), mesh, section.batch_size)


def compiled_sampler(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, object]:
    """What the compiler says of the sampler at `sample.batch_size`, and of decoding to pixels.

    Returns:
      `batch_size`; `tokens` and `pixels`, each what `compile_and_tell` gives.

    Raises:
      InputError: a batch that the mesh does not divide.
    """
    size, ways = config.sample.batch_size, batch_ways(mesh)
    if size % ways:
        raise InputError("sample.batch_size", str(size), f"a multiple of {ways}")
    generator, tokenizer = restore.make_sampler(config), restore.make_codec(config)
    params, decoder = (
        restore.param_shapes(functools.partial(init, module), mesh)
        for init, module in (
            (restore.init_generator, generator),
            (restore.init_tokenizer, tokenizer),
        )
    )
    shape = lambda sizes, dtype, sharding: jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)
    numbers, rows = replicated(mesh), batch_sharding(mesh)
    number, keys = shape((), jnp.float32, numbers), jax.eval_shape(lambda: jax.random.key(0))
    request = Request(
        labels=shape((size,), jnp.int32, rows),
        keys=shape((size,), keys.dtype, rows),
        guidance_scale=number,
        temperature=number,
        settings=sampling_settings(config, mesh.devices.flat[0].platform),
    )
    tokens = shape((size, *generator.token_shape), generator.token_dtype, rows)
    with jax.set_mesh(mesh):
        drawing = draw_tokens.lower(generator, params, request)
        decoding = pixels.lower(tokenizer, decoder, tokens)
        return {
            "batch_size": size,
            "compiled_for": mesh.devices.flat[0].device_kind,
            "tokens": compile_and_tell(drawing, mesh, size, cache_elements(config)),
            "pixels": compile_and_tell(decoding, mesh, size),
        }


def cache_elements(config: ConfigDict) -> int:
    """Elements of the keys, or values, of a layer while the configured sampler runs; 0: no cache.

    Without what a layout may add to the positions.
    """
    if not generators.KINDS[config.model.generator.kind].queries(config):
        return 0
    tokens = make_generator(config).length
    rows = config.sample.batch_size * (2 if config.sample.guidance_scale > 1 else 1)
    return rows * tokens * config.model.generator.width


def step_and_shapes(
    config: ConfigDict, mesh: jax.sharding.Mesh, step: str
) -> tuple[Step, tuple[TrainState, Batch, jax.Array, object]]:
    """One training step on a mesh, and its arguments' shapes with their shardings.

    Arguments and errors as of `compiled_step`.
    """
    section = _section(config, step)
    ways, size = batch_ways(mesh) * section.accumulate, section.batch_size
    if size % ways:
        name = "train_generator" if step == "generator" else "train_tokenizer"
        raise InputError(f"{name}.batch_size", str(size), f"a multiple of {ways}")
    program, batch, number = _program(config, mesh, step)
    state = init_state(program.init, jax.random.key(0), mesh)[1]
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    batch = {name: place(x, batch_sharding(mesh)) for name, x in batch.items()}
    key = place(jax.eval_shape(lambda: jax.random.key(0)), replicated(mesh))
    return program.step(number), (state, batch, key, program.frozen)


def layout_bytes(shapes: object) -> int:
    """Bytes on each device of a tree of shapes with their shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(shapes)
    )


def _section(config, step) -> ConfigDict:
    """The section that says how a step is trained."""
    return config.train_generator if step == "generator" else config.train_tokenizer


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
    if not is_trained(config):
        raise InputError("describe.steps", step, "generator: no tokenizer is trained here")
    section, size = config.train_tokenizer, config.data.image_size
    if step == "discriminator" and not section.loss.gan:
        raise InputError("describe.steps", step, "generator | tokenizer; or loss.gan > 0")
    program = tokenizer_program(config, frozen.shapes(config, mesh))
    batch = {"image": shape((section.batch_size, size, size, 3), jnp.uint8)}
    return program, batch, int(step == "discriminator")
