"""How fast the configured model samples and trains on the devices present: prints JSON.

Weights and tokens are random. Compilation is timed apart; every repetition is listed, and rates
are those of the median. FLOPs are the model's (see `describe`), not the compiler's. Each part is
logged as soon as it is measured: a batch that does not fit loses only its own part.
"""

import contextlib
import functools
import json
import logging
import os
import statistics
import time
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bar_jax import data
from bar_jax.bases import LEARNED
from bar_jax.config.validation import validate
from bar_jax.data.codec import pixels, tokens
from bar_jax.generators import make_generator, sampling_settings
from bar_jax.generators.kind import written_width
from bar_jax.generators.request import Request
from bar_jax.heads import make_head
from bar_jax.inspection import timing
from bar_jax.inspection.flops import product_flops
from bar_jax.inspection.model_flops import count, sampling_flops, training_flops
from bar_jax.inspection.plan import generator_program, tokenizer_program
from bar_jax.metrics import feature_networks
from bar_jax.metrics import timing as metric_timing
from bar_jax.pretrained import frozen
from bar_jax.pretrained.networks import RANDOM
from bar_jax.runtime.job import Batch, Job, batches_of
from bar_jax.runtime.mesh import batch_sharding, make_mesh, replicated
from bar_jax.sampling.provenance import schedule
from bar_jax.tokenizers import cached_as, real_valued
from bar_jax.training import restore
from bar_jax.training.step import init_state, jit_once

logger = logging.getLogger(__name__)

# The section whose batch_size a part is measured at.
WHOLE = ("head", "input")  # parts that no mesh cuts
SECTIONS = {
    "sampling": "sample",
    "training": "train_generator",
    "head": "train_generator",
    "basis": "train_generator",
    "tokenizer": "encode",
    "tokenizer_training": "train_tokenizer",
    "metrics": "evaluate",
    "features": "evaluate",
    "input": "train_tokenizer",
}


def run(config: ConfigDict) -> dict[str, object]:
    """Times the configured parts, one after another."""
    mesh = make_mesh(**config.mesh)
    device = jax.devices()[0]
    # What a part computes in, if it is not `dtype`.
    dtypes = {"sampling": config.sample.dtype, "tokenizer": config.encode.dtype}
    own = {name: dtypes.get(name, config.dtype) for name in config.benchmark.parts}
    found = {name: timing.peak_flops(device, dtype) for name, dtype in own.items()}
    peaks = {name: mesh.size * peak for name, (peak, _) in found.items()}
    parts = {
        "sampling": _sampling,
        "training": _training,
        "head": _head,
        "basis": _basis,
        "tokenizer": _tokenizer,
        "tokenizer_training": _tokenizer_training,
        "metrics": _metrics,
        "features": _features,
        "input": _input,
    }
    measured = {}
    for name in config.benchmark.parts:
        measured[name] = _at_each_size(name, parts[name], config, mesh, peaks[name])
    return {
        "device": device.device_kind,
        "devices": mesh.size,
        "memory_limit_bytes": timing.memory_limit(device),
        "jax": jax.__version__,
        "dtype": own,
        "peak_flops": peaks,
        "peak_flops_source": next(iter(found.values()))[1],
        **measured,
    }


def _at_each_size(
    name: str, part: Callable, config: ConfigDict, mesh: jax.sharding.Mesh, peak: float
) -> dict[str, object]:
    """A part at each of `benchmark.batches` (at the batch of its section, if there are none)."""

    def measure(size: int) -> dict[str, object]:
        own = config.copy_and_resolve_references()
        own[SECTIONS[name]].batch_size = size
        result = part(own, mesh, peak)
        logger.info("benchmark: %s: %s", name, json.dumps(result))
        return result

    benchmark, size = config.benchmark, config[SECTIONS[name]].batch_size
    if not benchmark.batches:
        return measure(size)
    return timing.sweep(measure, benchmark.batches, benchmark.first_that_fits)


def _metrics(config: ConfigDict, mesh: jax.sharding.Mesh, peak: float) -> dict[str, object]:
    """Inception's features of images, and numbers from 50,000 and 10,000 features of 2048."""
    return _features(config, mesh, peak) | metric_timing.time_numbers()


def _features(config: ConfigDict, mesh: jax.sharding.Mesh, _: float) -> dict[str, object]:
    """Inception's features of images that lie in memory."""
    config = config.copy_and_resolve_references()
    config.evaluate.weights.inception = RANDOM
    sizes = {"batch_size": config.evaluate.batch_size, "size": config.data.image_size}
    with jax.set_mesh(mesh):
        network = feature_networks.load(config, mesh, "inception")
        measured = metric_timing.time_features(
            mesh, network, "inception/pool", batches=config.benchmark.repeats, **sizes
        )
    return sizes | measured


def _sampling(config: ConfigDict, mesh: jax.sharding.Mesh, peak: float) -> dict[str, object]:
    """Tokens of a batch of images, and from tokens to pixels."""
    section, generator = config.sample, restore.make_sampler(config)
    tokenizer = restore.make_codec(config)
    init = lambda key: restore.init_generator(generator, key)
    params = restore.fresh_params(init, mesh, config.seed)
    batch = section.batch_size
    flops = sum(sampling_flops(config, params, batch).values()) / batch

    labels = np.arange(batch, dtype=np.int32) % config.data.num_classes
    tokens = np.zeros((batch, *generator.token_shape), generator.token_dtype)
    labels, tokens = jax.device_put((labels, tokens), batch_sharding(mesh))
    request = Request(
        labels=labels,
        keys=jax.random.split(jax.random.key(config.seed), batch),
        guidance_scale=jnp.float32(section.guidance_scale),
        temperature=jnp.float32(section.temperature),
        settings=sampling_settings(config),
    )
    repeats = config.benchmark.repeats
    with jax.set_mesh(mesh):
        drawn = timing.timed(
            jax.jit(generator.sample), (params, request), repeats, trace=config.benchmark.trace
        )
        del params
        init = lambda key: restore.init_tokenizer(tokenizer, key)
        decoder = restore.fresh_params(init, mesh, config.seed)
        decoded = timing.timed(
            jax.jit(functools.partial(pixels, tokenizer)), (decoder, tokens), repeats
        )

    median, decode_median = map(statistics.median, (drawn.seconds, decoded.seconds))
    return {
        "batch_size": batch,
        "guidance_scale": section.guidance_scale,
        **schedule(config),
        "tokens": generator.token_shape[0] // config.model.generator.patch_size**2,
        "compile_seconds": drawn.compile_seconds,
        # Of the first pictures: both programs' first runs, once they are compiled.
        "first_seconds": timing.rounded(drawn.first_seconds + decoded.first_seconds),
        "seconds": drawn.seconds,
        "images_per_second": timing.rounded(batch / median),
        "decode_compile_seconds": decoded.compile_seconds,
        "decode_seconds": decoded.seconds,
        "images_per_second_decoded": timing.rounded(batch / (median + decode_median)),
        "flops_per_image": flops,
        "flops_per_second": timing.rounded(flops * batch / median),
        "fraction_of_peak": timing.rounded(flops * batch / median / peak),
        "memory_bytes_per_device": drawn.memory,
        **({"trace": drawn.trace} if drawn.trace else {}),
    }


def _training(config: ConfigDict, mesh: jax.sharding.Mesh, peak: float) -> dict[str, object]:
    """One step of the generator on a batch of tokens."""
    section, generator = (
        config.train_generator,
        make_generator(config, config.train_generator.remat),
    )
    program = generator_program(config, mesh, generator)
    batch = _training_batch(config, generator)
    result, params = _time_step(config, mesh, section, program, batch, step=0)
    flops = training_flops(config, params)
    rate = flops * result["images_per_second"]
    return result | {
        "flops_per_image": flops,
        "flops_per_second": timing.rounded(rate),
        "model_flops_utilisation": timing.rounded(rate / peak),
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
    steps, args, result = {}, {}, {}
    for name, fields in variants.items():
        own = config.copy_and_resolve_references()
        own.model.basis.update(fields)
        validate(own)
        generator = make_generator(own, own.train_generator.remat)
        program = generator_program(own, mesh, generator)
        step, args[name], _ = _training_step(own, mesh, program, _training_batch(own, generator), 0)
        with jax.set_mesh(mesh):
            steps[name] = step.lower(*args[name]).compile()
        result[name] = {"memory_bytes_per_device": timing.program_bytes(steps[name]), "seconds": []}
    for turn in range(1 + config.benchmark.repeats):
        for name, step in steps.items():
            began = time.perf_counter()
            state, _ = jax.block_until_ready(step(*args[name]))
            seconds = time.perf_counter() - began
            args[name] = (state, *args[name][1:])
            if turn:  # the first is not counted
                result[name]["seconds"].append(timing.rounded(seconds))
    for found in result.values():
        pairs = zip(found["seconds"], result["host"]["seconds"], strict=True)
        found["time_ratio"] = timing.rounded(statistics.median(own / host for own, host in pairs))
        memory = found["memory_bytes_per_device"] / result["host"]["memory_bytes_per_device"]
        found["memory_ratio"] = timing.rounded(memory)
    return {"batch_size": config.train_generator.batch_size, **result}


def _tokenizer_training(
    config: ConfigDict, mesh: jax.sharding.Mesh, peak: float
) -> dict[str, object]:
    """A step of the tokenizer and, if the loss has a discriminator, one of the latter.

    FLOPs are those of the step as it is traced, with every frozen network and rematerialisation.
    """
    config = config.copy_and_resolve_references()
    section = config.train_tokenizer
    section.weights.update(dict.fromkeys(section.weights, RANDOM))
    program = tokenizer_program(config, frozen.load(config, mesh))
    size = config.data.image_size
    images = np.random.default_rng(config.seed).integers(
        0, 256, (section.batch_size, size, size, 3), np.uint8
    )
    steps = {"tokenizer": 0} | ({"discriminator": 1} if section.loss.gan else {})
    batch, result = {"image": images}, {}
    key = jax.random.key(config.seed)
    state = nn.unbox(jax.eval_shape(program.init, key))
    for network, step in steps.items():
        flops = product_flops(program.step(step), state, batch, key, program.frozen)
        result[network], _ = _time_step(config, mesh, section, program, batch, step)
        seconds = result[network]["seconds"]
        result[network] |= timing.rates(flops, section.batch_size, seconds, peak)
    return result


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
        timed = timing.timed(
            function,
            args,
            config.benchmark.repeats,
            feed=lambda args, out: (out[0], *args[1:]),
            trace=config.benchmark.trace,
        )
    result = {
        "batch_size": section.batch_size,
        "accumulate": section.accumulate,
        "remat": section.remat,
        "compile_seconds": timed.compile_seconds,
        "seconds": timed.seconds,
        "images_per_second": timing.rounded(section.batch_size / statistics.median(timed.seconds)),
        "memory_bytes_per_device": timed.memory,
        **({"trace": timed.trace} if timed.trace else {}),
    }
    return result, params


def _tokenizer(config: ConfigDict, mesh: jax.sharding.Mesh, peak: float) -> dict[str, object]:
    """From images to tokens, and from tokens to pixels, a batch of the encode job at a time."""
    tokenizer, batch = restore.make_codec(config), config.encode.batch_size
    rng, size = np.random.default_rng(config.seed), config.data.image_size
    images = rng.integers(0, 256, (batch, size, size, 3), np.uint8)
    x = (batch, *make_generator(config).token_shape)
    if real_valued(config):
        x = rng.standard_normal(x, np.float32)
    else:
        x = rng.integers(0, 2, x, np.uint8)
    params = restore.fresh_params(
        lambda key: restore.init_tokenizer(tokenizer, key), mesh, config.seed
    )
    result = {"batch_size": batch}
    with jax.set_mesh(mesh):
        for name, function, inputs in (("encode", tokens, images), ("decode", pixels, x)):
            function = functools.partial(function, tokenizer)
            timed = timing.timed(
                jax.jit(function),
                (params, jax.device_put(inputs, batch_sharding(mesh))),
                config.benchmark.repeats,
            )
            result[name] = {
                "compile_seconds": timed.compile_seconds,
                "seconds": timed.seconds,
                "images_per_second": timing.rounded(batch / statistics.median(timed.seconds)),
                "memory_bytes_per_device": timed.memory,
                **timing.rates(product_flops(function, params, inputs), batch, timed.seconds, peak),
            }
    return result


def _input(config: ConfigDict, mesh: jax.sharding.Mesh, peak: float) -> dict[str, object]:
    """Training images of the configured source, read and cropped by this machine's processors."""
    del mesh, peak
    section, batch = config.data, config.train_tokenizer.batch_size
    batches = data.train_batches(
        data.open_images(config),
        image_size=section.image_size,
        crop=section.crop,
        mirror=section.mirror,
        batch_size=batch,
        seed=config.seed,
        num_workers=section.num_workers,
        on_damaged=section.on_damaged,
    )
    with contextlib.closing(batches):
        next(batches)  # starts threads or processes
        began = time.perf_counter()
        for _ in range(config.benchmark.repeats):
            next(batches)
        seconds = time.perf_counter() - began
    return {
        "batch_size": batch,
        "processors": os.cpu_count(),
        "num_workers": section.num_workers,
        "seconds": timing.rounded(seconds),
        "images_per_second": timing.rounded(config.benchmark.repeats * batch / seconds),
    }


def _head(config: ConfigDict, mesh: jax.sharding.Mesh, peak: float) -> dict[str, object]:
    """Loss and gradient of the head alone, on the tokens of a training batch, on one device."""
    del mesh, peak
    section, bits = config.train_generator, written_width(config)
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
    timed = timing.timed(gradient, (params, z, targets, draws), config.benchmark.repeats)
    return {
        "kind": config.model.head.kind,
        "bits_per_token": bits,
        "batch_tokens": tokens,
        "parameters": count(params),
        "compile_seconds": timed.compile_seconds,
        "seconds": timed.seconds,
        "memory_bytes": timed.memory,
    }


def _batches(config: ConfigDict) -> list[Batch]:
    """Those of the parts that a mesh cuts, or the sizes that are given in their place."""
    sections = [SECTIONS[part] for part in config.benchmark.parts if part not in WHOLE]
    own = batches_of(*sections)(config)
    swept = config.benchmark.batches
    if not swept:
        return own
    return [Batch("benchmark.batches", size, batch.pieces) for batch in own for size in swept]


JOB = Job(run, _batches, draws_images=True, has_workdir=False)
