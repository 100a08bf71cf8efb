"""What a config's programs are, traced and never compiled: two training steps and the sampler."""

import hashlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bar_jax import models
from bar_jax.config import real_valued
from bar_jax.generators.settings import sampling_settings
from bar_jax.jobs import plan
from bar_jax.jobs.sample import pixels
from bar_jax.mesh import make_mesh
from bar_jax.training.step import stream_key

IMAGES = 2


def programs(config, sampling: bool = True) -> dict[str, str]:
    """Digests of what trains and samples a config, by name; equal ones compute the same.

    Args:
      sampling: whether the sampler, down to pixels, is one of them.
    """
    mesh = make_mesh(devices=jax.devices()[:1])
    found = {}
    for step in ("generator",) if real_valued(config) else ("tokenizer", "generator"):
        program, batch, number = plan._program(config, mesh, step)
        key = jax.random.key(0)
        state = jax.eval_shape(program.init, key)
        found[f"{step} init"] = _digest(program.init, key)
        given = program.pretrained, program.fixed
        found[f"{step} start"] = _hash(*(np.asarray(x).tobytes() for x in jax.tree.leaves(given)))
        with jax.set_mesh(mesh):
            step_fn = program.step(number)
            found[f"{step} step"] = _digest(step_fn, nn.unbox(state), batch, key, {})
    if sampling:
        found |= _sampling(config, mesh)
    return found


def _sampling(config, mesh) -> dict[str, str]:
    generator, codec = models.make_sampler(config), models.make_codec(config)
    key = stream_key(0, "tracing")
    params, decoder = (
        nn.unbox(jax.eval_shape(lambda k, init=init, module=module: init(module, k), key))
        for init, module in (
            (models.init_generator, generator),
            (models.init_tokenizer, codec),
        )
    )
    settings = sampling_settings(config, "cpu")
    labels = jnp.zeros(IMAGES, jnp.int32)
    keys = jax.random.split(key, IMAGES)
    draw = lambda params, labels, keys: generator.sample(params, labels, keys, settings, 1.5, 1.0)
    with jax.set_mesh(mesh):
        tokens = jax.eval_shape(draw, params, labels, keys)
        decode = lambda params, tokens: pixels(codec, params, tokens)
        return {
            "sampler": _digest(draw, params, labels, keys),
            "pixels": _digest(decode, decoder, tokens),
        }


def _digest(function, *arguments) -> str:
    traced = jax.make_jaxpr(function)(*arguments)
    text = re.sub(r"0x[0-9a-f]+", "", str(traced))
    return _hash(text.encode(), *(np.asarray(c).tobytes() for c in traced.consts))


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
