"""Floating-point operations of a generator, in sampling and in training, and its parameters."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bar_jax import heads
from bar_jax.generators import make_generator, sampling_settings
from bar_jax.generators.masked_bit import MaskedBitGenerator
from bar_jax.generators.request import Request
from bar_jax.inspection.flops import product_flops
from bar_jax.training import restore

TRUNK_KERNELS = ("blocks", "output_proj", "token_proj")
HEAD_SHARED = (("in_proj",), ("time_embed_in", "time_embed_out"))


def count(tree: object) -> int:
    """Number of parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def sampling_flops(config: ConfigDict, params: dict, batch: int = 1) -> dict[str, int]:
    """Floating-point operations of sampling a batch's tokens (without decoding them to pixels).

    Counts matrix products, two operations per multiply-add, as the sampler does them: attention
    over the whole preallocated cache, every step of the unmasking schedule, both branches of
    guidance where they differ, once what all images of a batch share.
    """
    module = make_generator(config)
    if not isinstance(module, MaskedBitGenerator):
        return {"generator": _traced_sampling(config, module, batch)}
    generator, head = config.model.generator, params["head"]
    guided = config.sample.guidance_scale > 1
    rows = 2 * batch if guided else batch
    tokens, prefix = module.length, module.prefix
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
    module = make_generator(config)
    if not isinstance(module, MaskedBitGenerator):
        return 3 * _traced_forward(module)
    generator = config.model.generator
    tokens = module.length
    sequence = module.prefix + tokens
    attention = 4 * sequence * generator.width * generator.depth
    trunk = {name: _kernel_flops(params["trunk"][name]) for name in TRUNK_KERNELS}
    per_position = trunk["blocks"] + attention + trunk["output_proj"]
    forward = sequence * per_position + tokens * (
        trunk["token_proj"] + _kernel_flops(params["head"])
    )
    return 3 * forward


def _traced_sampling(config: ConfigDict, generator: nn.Module, batch: int) -> int:
    """Products of sampling a batch of real-valued tokens, counted in the traced program.

    Of MAR it is more than is done: its programs for different numbers of tokens all count as the
    largest (see `flops.product_flops`).
    """
    key = jax.random.key(0)
    # The same products on all devices; a kernel's cannot be seen.
    settings = sampling_settings(config)._replace(attention="xla")
    params = nn.unbox(jax.eval_shape(lambda k: restore.init_generator(generator, k), key))
    labels, keys = jnp.zeros(batch, jnp.int32), jax.random.split(key, batch)
    return product_flops(generator.sample, params, Request(labels, keys, settings=settings))


def _traced_forward(generator: nn.Module) -> int:
    """Products of the loss of one image, counted in the traced program."""
    key = jax.random.key(0)
    params = nn.unbox(jax.eval_shape(lambda k: restore.init_generator(generator, k), key))
    tokens = jnp.zeros((1, *generator.token_shape), generator.token_dtype)
    loss = lambda params, tokens, labels, keys: generator.apply(
        {"params": params}, tokens, labels, keys, method=generator.initialize
    )
    return product_flops(loss, params, tokens, jnp.zeros(1, jnp.int32), key[None])


def _kernel_flops(tree: dict) -> int:
    """Operations of one row through every kernel of a tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return sum(2 * math.prod(leaf.shape) for path, leaf in leaves if path[-1].key == "kernel")
