"""How fast the configured model samples and trains on the devices present: prints JSON.

Weights and tokens are random. Compilation is timed apart; every repetition is listed, and rates
are those of the median. FLOPs are the model's (see `describe`), not the compiler's. Each part is
logged as soon as it is measured: a batch that does not fit loses only its own part.
"""

import functools
import json
import logging
import statistics
import time
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bar_jax import feature_networks, frozen, models
from bar_jax.bases import LEARNED
from bar_jax.config import bits_per_token, real_valued
from bar_jax.flops import product_flops
from bar_jax.generators import make_generator
from bar_jax.generators.settings import sampling_settings
from bar_jax.heads import make_head
from bar_jax.jobs.describe import count, sampling_flops, training_flops
from bar_jax.jobs.encode import tokens
from bar_jax.jobs.plan import generator_program
from bar_jax.jobs.sample import pixels, schedule
from bar_jax.jobs.train_tokenizer import make_program, with_both_players
from bar_jax.mesh import batch_sharding, make_mesh, replicated
from bar_jax.metrics import timing
from bar_jax.tokenizers import cached_as, make_tokenizer
from bar_jax.training.step import init_state, jit_once
from bar_jax.validation import validate

logger = logging.getLogger(__name__)

# Dense peak FLOP/s of a device in (bfloat16, float32 as JAX computes it by default: TF32 on GPU,
# bfloat16 passes on TPU), from the makers' data sheets; the first kind that matches counts.
PEAKS = {
    "H100 PCIe": (756e12, 378e12),
    "H100": (989e12, 495e12),
    "H200": (989e12, 495e12),
    "A100": (312e12, 156e12),
    "TPU v4": (275e12, 275e12),
    "TPU v5 lite": (197e12, 197e12),
    "TPU v5e": (197e12, 197e12),
    "TPU v5": (459e12, 459e12),
    "TPU v6 lite": (918e12, 918e12),
}


def run(config: ConfigDict) -> dict[str, object]:
    """Times the configured parts, one after another."""
    mesh = make_mesh(**config.mesh)
    device = jax.devices()[0]
    peak, source = peak_flops(device, config.dtype)
    peak *= mesh.size
    parts = {
        "sampling": _sampling,
        "training": _training,
        "head": _head,
        "basis": _basis,
        "tokenizer": _tokenizer,
        "tokenizer_training": _tokenizer_training,
        "metrics": _metrics,
    }
    measured = {}
    for name in config.benchmark.parts:
        measured[name] = parts[name](config, mesh, peak)
        logger.info("benchmark: %s: %s", name, json.dumps(measured[name]))
    return {
        "device": device.device_kind,
        "devices": mesh.size,
        "jax": jax.__version__,
        "dtype": config.dtype,
        "peak_flops": peak,
        "peak_flops_source": source,
        **measured,
    }


def _metrics(config: ConfigDict, mesh: jax.sharding.Mesh, _: float) -> dict[str, object]:
    """Inception's features of images, and numbers from 50,000 and 10,000 features of 2048."""
    config = config.copy_and_resolve_references()
    config.evaluate.weights.inception = feature_networks.RANDOM
    sizes = {"batch_size": config.evaluate.batch_size, "size": config.data.image_size}
    with jax.set_mesh(mesh):
        network = feature_networks.load(config, mesh, "inception")
        measured = timing.time_features(
            mesh, network, "inception/pool", batches=config.benchmark.repeats, **sizes
        )
    return sizes | measured | timing.time_numbers()


def peak_flops(device: jax.Device, dtype: str) -> tuple[float, str]:
    """Peak FLOP/s of one device, from a table or else from a product of large matrices."""
    for kind, (bfloat16, float32) in PEAKS.items():
        if kind in device.device_kind:
            return (bfloat16 if dtype == "bfloat16" else float32), "data sheet"
    size = 2048
    x = jnp.ones((size, size), dtype)
    _, seconds, _ = _timed(jax.jit(jnp.matmul), (x, x), repeats=5)
    return 2 * size**3 / min(seconds), f"measured: {size} x {size} product"


def _sampling(config: ConfigDict, mesh: jax.sharding.Mesh, peak: float) -> dict[str, object]:
    """Tokens of a batch of images, and from tokens to pixels."""
    section, generator, tokenizer = config.sample, make_generator(config), make_tokenizer(config)
    settings = sampling_settings(config)
    init = lambda key: models.init_generator(generator, key)
    params = models.fresh_params(init, mesh, config.seed)
    batch = section.batch_size
    flops = sum(sampling_flops(config, params, batch).values()) / batch

    def draw(params, labels, keys, guidance_scale, temperature):
        return generator.sample(params, labels, keys, settings, guidance_scale, temperature)

    labels = np.arange(batch, dtype=np.int32) % config.data.num_classes
    tokens = np.zeros((batch, *generator.token_shape), generator.token_dtype)
    labels, tokens = jax.device_put((labels, tokens), batch_sharding(mesh))
    keys = jax.random.split(jax.random.key(config.seed), batch)
    numbers = jnp.float32(section.guidance_scale), jnp.float32(section.temperature)
    repeats = config.benchmark.repeats
    with jax.set_mesh(mesh):
        compile_seconds, seconds, memory = _timed(
            jax.jit(draw), (params, labels, keys, *numbers), repeats
        )
        del params
        init = lambda key: models.init_tokenizer(tokenizer, key)
        decoder = models.fresh_params(init, mesh, config.seed)
        decode_compile_seconds, decode_seconds, _ = _timed(
            jax.jit(functools.partial(pixels, tokenizer)), (decoder, tokens), repeats
        )

    median, decode_median = statistics.median(seconds), statistics.median(decode_seconds)
    return {
        "batch_size": batch,
        "guidance_scale": section.guidance_scale,
        **schedule(config),
        "tokens": generator.token_shape[0] // config.model.generator.patch_size**2,
        "compile_seconds": compile_seconds,
        "seconds": seconds,
        "images_per_second": _rounded(batch / median),
        "decode_compile_seconds": decode_compile_seconds,
        "decode_seconds": decode_seconds,
        "images_per_second_decoded": _rounded(batch / (median + decode_median)),
        "flops_per_image": flops,
        "flops_per_second": _rounded(flops * batch / median),
        "fraction_of_peak": _rounded(flops * batch / median / peak),
        "memory_bytes_per_device": memory,
    }


def _training(config: ConfigDict, mesh: jax.sharding.Mesh, peak: float) -> dict[str, object]:
    """One step of the generator on a batch of tokens."""
    section, generator = (
        config.train_generator,
        make_generator(config, config.train_generator.remat),
    )
    program = generator_program(config, mesh, generator)
    batch = _training_batch(config, generator)
    told, params = _time_step(config, mesh, section, program, batch, step=0)
    flops = training_flops(config, params)
    rate = flops * told["images_per_second"]
    return told | {
        "flops_per_image": flops,
        "flops_per_second": _rounded(rate),
        "model_flops_utilisation": _rounded(rate / peak),
    }


def _training_batch(config: ConfigDict, generator: nn.Module) -> dict[str, np.ndarray]:
    """Random tokens, as a cache has them, and labels."""
    rng, (kind, width) = np.random.default_rng(config.seed), cached_as(config)
    size = config.train_generator.batch_size
    shape = (size, generator.token_shape[0], width)
    tokens = rng.integers(0, 2 if kind == "bits" else 256, shape, np.uint8)
    return {
        "tokens": rng.normal(size=shape).astype(kind) if kind == "float32" else tokens,
        "label": rng.integers(0, config.data.num_classes, size, np.int32),
    }


def _basis(config: ConfigDict, mesh: jax.sharding.Mesh, peak: float) -> dict[str, object]:
    """What a learned basis adds to a training step (basis paper, Table 9).

    Steps of the host alone, on a basis with the host's loss, and with the residual objective are
    made in turn, so that whatever else the machine does falls on all of them. Ratios are medians
    over the turns.
    """
    del peak
    variants = {
        "host": dict(kind="identity"),
        "bar": dict(kind=LEARNED, objective="bar"),
        "residual": dict(kind=LEARNED, objective="residual"),
    }
    steps, args, told = {}, {}, {}
    for name, fields in variants.items():
        own = config.copy_and_resolve_references()
        own.model.basis.update(fields)
        validate(own)
        generator = make_generator(own, own.train_generator.remat)
        program = generator_program(own, mesh, generator)
        step, args[name], _ = _training_step(own, mesh, program, _training_batch(own, generator), 0)
        with jax.set_mesh(mesh):
            steps[name] = step.lower(*args[name]).compile()
        told[name] = {"memory_bytes_per_device": _bytes(steps[name]), "seconds": []}
    for turn in range(1 + config.benchmark.repeats):
        for name, step in steps.items():
            began = time.perf_counter()
            state, _ = jax.block_until_ready(step(*args[name]))
            seconds = time.perf_counter() - began
            args[name] = (state, *args[name][1:])
            if turn:  # the first is not counted
                told[name]["seconds"].append(_rounded(seconds))
    for found in told.values():
        pairs = zip(found["seconds"], told["host"]["seconds"], strict=True)
        found["time_ratio"] = _rounded(statistics.median(own / host for own, host in pairs))
        memory = found["memory_bytes_per_device"] / told["host"]["memory_bytes_per_device"]
        found["memory_ratio"] = _rounded(memory)
    return {"batch_size": config.train_generator.batch_size, **told}


def _tokenizer_training(
    config: ConfigDict, mesh: jax.sharding.Mesh, peak: float
) -> dict[str, object]:
    """A step of the tokenizer and, if the loss has a discriminator, one of the latter.

    FLOPs are those of the step as it is traced, with every frozen network and rematerialisation.
    """
    config = with_both_players(config)
    section = config.train_tokenizer
    section.weights.update(dict.fromkeys(section.weights, frozen.RANDOM))
    program = make_program(config, frozen.load(config, mesh), examples=1, steps=4, warmup=1)
    size = config.data.image_size
    images = np.random.default_rng(config.seed).integers(
        0, 256, (section.batch_size, size, size, 3), np.uint8
    )
    steps = {"tokenizer": 0} | ({"discriminator": 1} if section.loss.gan else {})
    batch, told = {"image": images}, {}
    key = jax.random.key(config.seed)
    state = nn.unbox(jax.eval_shape(program.init, key))
    for player, step in steps.items():
        flops = product_flops(program.step(step), state, batch, key, program.frozen)
        told[player], _ = _time_step(config, mesh, section, program, batch, step)
        told[player] |= _rates(flops, section.batch_size, told[player]["seconds"], peak)
    return told


def _rates(flops: int, batch: int, seconds: list[float], peak: float) -> dict[str, float]:
    """Arithmetic of a program that takes `flops` for a batch."""
    rate = flops / statistics.median(seconds)
    return {
        "flops_per_image": flops // batch,
        "flops_per_second": _rounded(rate),
        "fraction_of_peak": _rounded(rate / peak),
    }


def _training_step(config, mesh, program, batch, step) -> tuple[Callable, tuple, dict]:
    """A step of a program, jitted; its first arguments; the shapes of the parameters."""
    make_state, shapes = init_state(program.init, jax.random.key(config.seed), mesh)
    # The state goes in and comes out, as in training.
    layout = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    function = jax.jit(
        program.step(step), donate_argnums=0, out_shardings=(layout, replicated(mesh))
    )
    with jax.set_mesh(mesh):
        state = make_state()
    batch = jax.device_put(batch, batch_sharding(mesh))
    key = jax.device_put(jax.random.key(config.seed), replicated(mesh))
    return function, (state, batch, key, program.frozen), shapes.params


def _time_step(config, mesh, section, program, batch, step) -> tuple[dict[str, object], dict]:
    """Times a step of a program; also returns the shapes of its parameters."""
    function, args, params = _training_step(config, mesh, program, batch, step)
    with jax.set_mesh(mesh):
        compile_seconds, seconds, memory = _timed(
            function, args, config.benchmark.repeats, feed=lambda args, out: (out[0], *args[1:])
        )
    told = {
        "batch_size": section.batch_size,
        "accumulate": section.accumulate,
        "remat": section.remat,
        "compile_seconds": compile_seconds,
        "seconds": seconds,
        "images_per_second": _rounded(section.batch_size / statistics.median(seconds)),
        "memory_bytes_per_device": memory,
    }
    return told, params


def _tokenizer(config: ConfigDict, mesh: jax.sharding.Mesh, peak: float) -> dict[str, object]:
    """From images to tokens, and from tokens to pixels, a batch of the encode job at a time."""
    tokenizer, batch = make_tokenizer(config), config.encode.batch_size
    rng, size = np.random.default_rng(config.seed), config.data.image_size
    images = rng.integers(0, 256, (batch, size, size, 3), np.uint8)
    x = (batch, *make_generator(config).token_shape)
    if real_valued(config):
        x = rng.standard_normal(x, np.float32)
    else:
        x = rng.integers(0, 2, x, np.uint8)
    params = models.fresh_params(
        lambda key: models.init_tokenizer(tokenizer, key), mesh, config.seed
    )
    told = {"batch_size": batch}
    with jax.set_mesh(mesh):
        for name, function, inputs in (("encode", tokens, images), ("decode", pixels, x)):
            function = functools.partial(function, tokenizer)
            compile_seconds, seconds, memory = _timed(
                jax.jit(function),
                (params, jax.device_put(inputs, batch_sharding(mesh))),
                config.benchmark.repeats,
            )
            told[name] = {
                "compile_seconds": compile_seconds,
                "seconds": seconds,
                "images_per_second": _rounded(batch / statistics.median(seconds)),
                "memory_bytes_per_device": memory,
                **_rates(product_flops(function, params, inputs), batch, seconds, peak),
            }
    return told


def _head(config: ConfigDict, mesh: jax.sharding.Mesh, peak: float) -> dict[str, object]:
    """Loss and gradient of the head alone, on the tokens of a training batch, on one device."""
    del mesh, peak
    section, bits = config.train_generator, bits_per_token(config)
    head = make_head(config, bits, section.remat)
    tokens = section.batch_size * make_generator(config).trunk.num_tokens
    rng, width = np.random.default_rng(config.seed), config.model.head.width
    z = jnp.asarray(rng.standard_normal((tokens, width)), config.dtype)
    targets = jnp.asarray(rng.integers(0, 2, (tokens, bits), np.uint8))
    draws = head.draws(jax.random.uniform(jax.random.key(0), (tokens, head.uniforms_per_token)))
    init = functools.partial(head.init, method=head.loss)
    make = jit_once(lambda key: nn.unbox(init(key, z, targets, draws))["params"])
    params = make(jax.random.key(config.seed))

    def loss(params, z, targets, draws):
        total, weight = head.apply({"params": params}, z, targets, draws, method=head.loss)["loss"]
        return total / weight

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    compile_seconds, seconds, memory = _timed(
        gradient, (params, z, targets, draws), config.benchmark.repeats
    )
    return {
        "kind": config.model.head.kind,
        "bits_per_token": bits,
        "batch_tokens": tokens,
        "parameters": count(params),
        "compile_seconds": compile_seconds,
        "seconds": seconds,
        "memory_bytes": memory,
    }


def _timed(
    function: Callable,
    args: tuple,
    repeats: int,
    feed: Callable[[tuple, object], tuple] = lambda args, out: args,
) -> tuple[float, list[float], int]:
    """Times a jitted function.

    Args:
      feed: (arguments, result) -> the arguments of the next repetition.

    Returns:
      Seconds of compilation, seconds of each repetition after one that is not counted, and the
      compiler's count of bytes on a device (arguments, results and temporaries).
    """
    began = time.perf_counter()
    compiled = function.lower(*args).compile()
    compile_seconds = time.perf_counter() - began
    seconds = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        out = jax.block_until_ready(compiled(*args))
        seconds.append(_rounded(time.perf_counter() - began))
        args = feed(args, out)
        del out  # or two results would be held at a time
    return _rounded(compile_seconds), seconds[1:], _bytes(compiled)


def _bytes(compiled: jax.stages.Compiled) -> int:
    """The compiler's count of arguments, results and temporaries on a device."""
    memory = compiled.memory_analysis()
    size = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return size + memory.temp_size_in_bytes - memory.alias_size_in_bytes


def _rounded(number: float) -> float:
    """Four digits are more than a timing has."""
    return float(f"{number:.4g}")
