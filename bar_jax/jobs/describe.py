"""What a config amounts to, without allocating it: prints JSON.

Parameters per part, the bit budget where tokens are bits, the sequence length, FLOPs per image and
the bytes of training state on each device of the mesh, which may be larger than this machine
(`describe.devices`). With `describe.steps` training steps and the sampler are compiled for it:
memory per device, FLOPs, bytes moved and the time that they take at least, what devices send each
other, and what the program does that it might not need to do.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bar_jax import heads
from bar_jax.generators import make_generator, sampling_settings
from bar_jax.generators.kind import written_width
from bar_jax.generators.masked_bit import MaskedBitGenerator
from bar_jax.generators.request import Request
from bar_jax.inspection.flops import product_flops
from bar_jax.jobs.plan import (
    compiled_sampler,
    compiled_step,
    devices,
    generator_program,
    layout_bytes,
)
from bar_jax.jobs.train_tokenizer import make_program, with_both_players
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
from bar_jax.training import restore as models
from bar_jax.training.players import Program
from bar_jax.training.step import TrainState, init_state

TRUNK_KERNELS = ("blocks", "output_proj", "token_proj")
HEAD_SHARED = (("in_proj",), ("time_embed_in", "time_embed_out"))


def run(config: ConfigDict) -> dict[str, object]:
    """Describes the configured model on the configured mesh."""
    mesh = make_mesh(**config.mesh, devices=devices(config.describe.devices))
    tokenizer, generator = make_tokenizer(config), make_generator(config)
    shapes = {
        "tokenizer": models.param_shapes(lambda k: models.init_tokenizer(tokenizer, k), mesh),
        "generator": models.param_shapes(lambda k: models.init_generator(generator, k), mesh),
    }
    flops = sampling_flops(config, shapes["generator"])
    return {
        "parameters": {
            **tokenizer_parameters(config, shapes["tokenizer"]),
            "generator": {part: count(tree) for part, tree in shapes["generator"].items()},
            "generator_total": count(shapes["generator"]),
        },
        **tokens(config),
        "generator_tokens": _tokens(config),
        "sequence_length": sequence_length(generator),
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
    program = make_program(with_both_players(config), {}, examples=1, steps=2, warmup=1)
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


def count(tree: object) -> int:
    """Number of parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def sampling_flops(config: ConfigDict, params: dict, batch: int = 1) -> dict[str, int]:
    """Floating-point operations of sampling a batch's tokens (without decoding them to pixels).

    Counts matrix products, two operations per multiply-add, as the sampler does them: attention
    over the whole preallocated cache, every step of the unmasking schedule, both branches of
    guidance where they differ, once what all images of a batch share.
    """
    if not isinstance(make_generator(config), MaskedBitGenerator):
        return {"generator": _traced_sampling(config, batch)}
    generator, head = config.model.generator, params["head"]
    guided = config.sample.guidance_scale > 1
    rows = 2 * batch if guided else batch
    tokens, prefix = _sequence(config)
    tokens = config.sample.tokens or tokens
    positions = prefix - 1 + tokens  # the last class copy is the first step of the scan
    layers = params["trunk"]["blocks"]
    attention = 4 * (prefix + tokens) * generator.width * generator.depth
    modulation = _kernel_flops(layers["adaln"])  # once per class, "no class" among them
    blocks = _kernel_flops(layers) - modulation + attention
    # Of the prefix the last layer leaves keys and values, nothing else.
    unread = attention + sum(_kernel_flops(layers[name]) for name in ("out", "mlp"))
    unread = (prefix - 1) * unread // generator.depth
    output = _kernel_flops(params["trunk"]["output_proj"])
    embedding = _kernel_flops(params["trunk"]["token_proj"])  # of tokens that both branches share
    # So do they share the bits that the masked-bit head sees; all images share its time.
    bits, time = (sum(_kernel_flops(head[n]) for n in names if n in head) for names in HEAD_SHARED)
    own = _kernel_flops(head) - bits - time
    evaluations = tokens * heads.KINDS[config.model.head.kind].evaluations(config)
    return {
        "trunk": rows * (positions * blocks - unread + tokens * output)
        + (batch + guided) * positions * modulation
        + batch * tokens * embedding,
        "head": evaluations * (rows * own + batch * bits + time),
    }


def training_flops(config: ConfigDict, params: dict) -> int:
    """Model FLOPs of training on one image's tokens: three times those of the forward pass.

    Counts matrix products, with attention over the whole sequence and without what
    rematerialisation computes again.
    """
    if not isinstance(make_generator(config), MaskedBitGenerator):
        return 3 * _traced_forward(config)
    generator = config.model.generator
    tokens, prefix = _sequence(config)
    sequence = prefix + tokens
    attention = 4 * sequence * generator.width * generator.depth
    trunk = {name: _kernel_flops(params["trunk"][name]) for name in TRUNK_KERNELS}
    per_position = trunk["blocks"] + attention + trunk["output_proj"]
    forward = sequence * per_position + tokens * (
        trunk["token_proj"] + _kernel_flops(params["head"])
    )
    return 3 * forward


def _traced_sampling(config: ConfigDict, batch: int) -> int:
    """Products of sampling a batch of real-valued tokens, counted in the traced program.

    Of MAR it is more than is done: its programs for different numbers of tokens all count as the
    largest (see `flops.product_flops`).
    """
    generator, key = make_generator(config), jax.random.key(0)
    # The same products on all devices; a kernel's cannot be seen.
    settings = sampling_settings(config)._replace(attention="xla")
    params = nn.unbox(jax.eval_shape(lambda k: models.init_generator(generator, k), key))
    labels, keys = jnp.zeros(batch, jnp.int32), jax.random.split(key, batch)
    return product_flops(generator.sample, params, Request(labels, keys, settings=settings))


def _traced_forward(config: ConfigDict) -> int:
    """Products of the loss of one image, counted in the traced program."""
    generator, key = make_generator(config), jax.random.key(0)
    params = nn.unbox(jax.eval_shape(lambda k: models.init_generator(generator, k), key))
    tokens = jnp.zeros((1, *generator.token_shape), generator.token_dtype)
    loss = lambda params, tokens, labels, keys: generator.apply(
        {"params": params}, tokens, labels, keys, method=generator.initialize
    )
    return product_flops(loss, params, tokens, jnp.zeros(1, jnp.int32), key[None])


def sequence_length(generator: nn.Module) -> int:
    """Positions that the generator's transformer sees, with those in front of the tokens."""
    return generator.prefix + generator.length


def _tokens(config: ConfigDict) -> int:
    """Tokens that a generator writes: rows of y, where they are real-valued."""
    return make_generator(config).length


def _sequence(config: ConfigDict) -> tuple[int, int]:
    """Tokens that the generator writes, and positions in front of them."""
    trunk = make_generator(config).trunk
    return trunk.num_tokens, trunk.prefix


def _kernel_flops(tree: dict) -> int:
    """Operations of one row through every kernel of a tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return sum(2 * math.prod(leaf.shape) for path, leaf in leaves if path[-1].key == "kernel")


def _state(program: Program, mesh: jax.sharding.Mesh) -> TrainState:
    """Shapes of all that a stage changes: parameters, moments, average, discriminator."""
    return init_state(program.init, jax.random.key(0), mesh)[1]


JOB = Job(run, has_workdir=False, on_devices=False)
