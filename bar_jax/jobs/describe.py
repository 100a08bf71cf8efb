"""What a config amounts to, without allocating it: prints JSON.

Parameters per part, the bit budget where tokens are bits, the sequence length, FLOPs per image and
the bytes of training state on each device of the mesh, which may be larger than this machine
(`describe.devices`). With `describe.steps` training steps and the sampler are compiled for it:
memory per device, FLOPs, bytes moved and the time that they take at least, what devices send each
other, and what the program does that it might not need to do.
"""

import logging

import jax
from clu import parameter_overview
from ml_collections import ConfigDict

from bar_jax.generators import make_generator
from bar_jax.generators.kind import written_width
from bar_jax.inspection.model_flops import count, sampling_flops, training_flops
from bar_jax.inspection.plan import (
    compiled_sampler,
    compiled_step,
    devices,
    generator_program,
    layout_bytes,
    tokenizer_program,
)
from bar_jax.pretrained import frozen
from bar_jax.runtime.job import Job
from bar_jax.runtime.mesh import make_mesh
from bar_jax.tokenizers import (
    bit_budget,
    is_trained,
    kind_of,
    make_tokenizer,
    real_valued,
    sequence_grid,
    token_width,
)
from bar_jax.training import restore
from bar_jax.training.step import Program, TrainState, init_state

logger = logging.getLogger(__name__)


def run(config: ConfigDict) -> dict[str, object]:
    """Describes the configured model on the configured mesh."""
    mesh = make_mesh(**config.mesh, devices=devices(config.describe.devices))
    tokenizer, generator = make_tokenizer(config), make_generator(config)
    shapes = {
        "tokenizer": restore.param_shapes(lambda k: restore.init_tokenizer(tokenizer, k), mesh),
        "generator": restore.param_shapes(lambda k: restore.init_generator(generator, k), mesh),
    }
    for name, params in shapes.items():
        table = parameter_overview.get_parameter_overview(params, include_stats="sharding")
        logger.info("%s: parameters\n%s", name, table)
    flops = sampling_flops(config, shapes["generator"])
    return {
        "parameters": {
            **tokenizer_parameters(config, shapes["tokenizer"]),
            "generator": {part: count(tree) for part, tree in shapes["generator"].items()},
            "generator_total": count(shapes["generator"]),
        },
        **tokens(config),
        "generator_tokens": generator.length,
        "sequence_length": generator.prefix + generator.length,
        "sampling_flops_per_image": flops | {"total": sum(flops.values())},
        "training_flops_per_image": training_flops(config, shapes["generator"]),
        "mesh": dict(mesh.shape),
        "state_bytes_per_device": {
            **tokenizer_bytes(config, shapes["tokenizer"], mesh),
            "generator": layout_bytes(_state(generator_program(config, None, generator), mesh)),
        },
        "steps": {
            step: compiled_sampler(config, mesh)
            if step == "sampler"
            else compiled_step(config, mesh, step)
            for step in config.describe.steps
        },
    }


def tokens(config: ConfigDict) -> dict[str, object]:
    """How many tokens an image has, and how many bits or real numbers a token."""
    rows, columns = sequence_grid(config)
    if real_valued(config):
        return {"numbers_per_token": token_width(config), "tokens": rows * columns}
    bits = token_width(config)
    return {
        "bits_per_token": bits,
        "tokens": rows * columns,
        "bit_budget": bit_budget.discrete((rows, columns), 2**bits),
        "bit_budgets_of_others": bit_budget.of_named_tokenizers(config.data.image_size),
        "generator_bits_per_token": written_width(config),
    }


def tokenizer_bytes(config: ConfigDict, params: dict, mesh: jax.sharding.Mesh) -> dict[str, int]:
    """Bytes on each device: of its training or, where it is not trained here, of its parameters."""
    if not is_trained(config):
        return {"tokenizer": layout_bytes(params)}
    program = tokenizer_program(config, frozen.Networks())
    return {
        "tokenizer": layout_bytes(_state(program, mesh)),
        "tokenizer_frozen_networks": layout_bytes(frozen.shapes(config, mesh)),
    }


def tokenizer_parameters(config: ConfigDict, params: dict) -> dict[str, object]:
    """How many parameters a tokenizer has, by part, by what happens to them, and by use."""
    parts = {part: count(tree) for part, tree in params.items()}
    counted = kind_of(config).count_parameters
    by_use = {"tokenizer_trainable": 0, "tokenizer_total": count(params)}
    by_use |= {"tokenizer_encoding": 0, "tokenizer_decoding": 0}
    return {"tokenizer": parts, **(counted(config, params) if counted else by_use)}


def _state(program: Program, mesh: jax.sharding.Mesh) -> TrainState:
    """Shapes of all that a stage changes: parameters, moments, average, discriminator."""
    return init_state(program.init, jax.random.key(0), mesh)[1]


JOB = Job(run, has_workdir=False, on_devices=False)
