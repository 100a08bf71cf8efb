"""What a config's programs are, traced and never compiled: two training steps and the sampler."""

import hashlib
import re
from collections.abc import Callable, Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bar_jax.data.codec import pixels
from bar_jax.generators import sampling_settings
from bar_jax.generators.request import Request
from bar_jax.inspection import plan
from bar_jax.runtime.mesh import make_mesh
from bar_jax.tokenizers import real_valued
from bar_jax.training import restore

IMAGES = 2


def trace(config) -> None:
    """Traces what trains and samples a config; raises what that raises."""
    for _, function, arguments in _programs(config):
        jax.eval_shape(function, *arguments)


def digests(config) -> dict[str, str]:
    """A digest of each program that trains or samples a config; equal ones compute the same."""
    return {name: _digest(function, arguments) for name, function, arguments in _programs(config)}


def _programs(config) -> Iterator[tuple[str, Callable, tuple]]:
    """Names, functions, and arguments of which the shapes count."""
    mesh, key = make_mesh(devices=jax.devices()[:1]), jax.random.key(0)
    with jax.set_mesh(mesh):
        for step in ("generator",) if real_valued(config) else ("tokenizer", "generator"):
            program, batch, number = plan._program(config, mesh, step)
            state = nn.unbox(jax.eval_shape(program.init, key))
            yield f"{step}, fresh", program.init, (key,)
            yield f"{step}, given", lambda p=program: (p.pretrained, p.fixed), ()
            yield f"{step}, step", program.step(number), (state, batch, key, program.frozen)

        generator, codec = restore.make_sampler(config), restore.make_codec(config)
        params = nn.unbox(jax.eval_shape(lambda k: restore.init_generator(generator, k), key))
        decoder = nn.unbox(jax.eval_shape(lambda k: restore.init_tokenizer(codec, k), key))
        settings, labels = sampling_settings(config, "cpu"), jnp.zeros(IMAGES, jnp.int32)
        keys = jax.random.split(key, IMAGES)

        def draw(params, decoder, labels, keys):
            request = Request(labels, keys, 1.5, settings=settings)
            return pixels(codec, decoder, generator.sample(params, request))

        yield "sampler", draw, (params, decoder, labels, keys)


def _digest(function: Callable, arguments: tuple) -> str:
    traced = jax.make_jaxpr(function)(*arguments)
    digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(traced)).encode())
    for constant in traced.consts:
        digest.update(np.asarray(constant).tobytes())
    return digest.hexdigest()[:16]
