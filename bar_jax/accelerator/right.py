"""Whether the accelerator computes what the CPU does: small models, float32, highest precision.

Weights are random, and none is zero: fresh ones make most of a network do nothing. The CPU's
programs are compiled without optimisation, which is quick. Without an accelerator (`tiny`) the
first device of the CPU takes its place, and the second compiles the same programs with
optimisation: what differs then is XLA's doing, or a race of ours.
"""

import functools
import json
import logging
import tempfile
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bar_jax.accelerator.comparison import Setting, both, distance, judged, on
from bar_jax.config.file import load_config
from bar_jax.data.codec import tokens as encoded
from bar_jax.generators import make_generator, mar_sampler, xar_sampler
from bar_jax.generators.masked_bit import sample_tokens
from bar_jax.generators.request import Request
from bar_jax.generators.settings import Settings
from bar_jax.inspection.plan import generator_program
from bar_jax.nn import decode_attention
from bar_jax.nn.attention import attend
from bar_jax.runtime import workdir
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.mesh import batch_sharding, make_mesh, replicated
from bar_jax.tokenizers import cached_as, make_tokenizer, real_valued
from bar_jax.training import checkpoint, restore
from bar_jax.training.step import init_state

logger = logging.getLogger(__name__)

BATCH, STEPS = 8, 5
BITS, XAR, MAR = "masked_bit/bar_b", "basis/xar_b", "basis/mar_b_host"
# Lengths of sequences that odd numbers of tokens and class embeddings make.
LENGTHS = (49, 97, 197, 257, 289)
# What random layers multiply deviations by, and those of generators that feed on real numbers which
# they draw. There 0.5 made of a change of the noise by 1e-6 one of the latents by 0.4 (xAR) and 0.7
# (MAR): roundings alone would decide. With 0.15 it stays 1e-6 and 3e-6.
GAIN, CALM = 0.5, 0.15


def run(names: tuple[str, ...], tiny: bool) -> dict[str, object]:
    """Makes the checks; each is logged when it is made, and one that raises is reported as failed.

    Returns:
      `device`, `jax`, and for each check its `error` with its `tolerance` (or what else it found),
      and `ok`: True, False, or None where it does not apply.
    """
    cpus = jax.devices("cpu")
    if tiny:
        setting = Setting(cpus[0], cpus[-1], {"xla_backend_optimization_level": 1}, tiny)
    else:
        options = {"xla_backend_optimization_level": 0}
        setting = Setting(jax.devices()[0], cpus[0], options, tiny)
    report = {"device": setting.device.device_kind, "jax": jax.__version__}
    with jax.default_matmul_precision("highest"):
        for name in names:
            try:
                found = CHECKS[name](setting)
            except Exception as error:  # the next check may still say something
                logger.exception("%s", name)
                found = {"ok": False, "raised": f"{type(error).__name__}: {str(error)[:300]}"}
            report[name] = found
            logger.info("benchmark: %s: %s", name, json.dumps(found))
    return report


# --- checks --------------------------------------------------------------------------------------


def loss(setting: Setting) -> dict[str, object]:
    """The masked-bit generator's loss and its gradient."""
    config, generator, params = _model(setting, BITS)
    function = functools.partial(_gradient, generator)
    args = params, _batch(config, generator)
    (here, gradient), (there, other) = both(setting, function, *args)
    return judged(
        loss=(abs(here - there) / abs(there), 1e-5), gradient=(distance(gradient, other), 1e-4)
    )


def tokens(setting: Setting) -> dict[str, object]:
    """The masked-bit generator's tokens at temperature 0, with guidance: fraction that differs."""
    _, generator, params = _model(setting, BITS)
    here, there = both(setting, functools.partial(_draw, generator), params)
    return judged(tokens=(float(np.mean(here != there)), 0.0))


def tokenizer(setting: Setting) -> dict[str, object]:
    """Bits of images (fraction that differs), and the images that are made of bits."""
    config, _, _ = _model(setting, BITS)
    module = make_tokenizer(config)
    params = _params(lambda key: restore.init_tokenizer(module, key))
    size, rng = config.data.image_size, np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, size, size, 3), np.uint8)

    def reconstruct(params, images):
        bits = encoded(module, params, images)
        return bits, module.apply({"params": params}, bits, method=module.decode)

    (bits, pixels), (other_bits, other_pixels) = both(setting, reconstruct, params, images)
    return judged(
        bits=(float(np.mean(bits != other_bits)), 0.0),
        pixels=(distance(pixels, other_pixels), 1e-4),
    )


def xar(setting: Setting) -> dict[str, object]:
    """xAR's sampler with given noise."""
    config, generator, params = _model(setting, XAR)
    host, steps, rng = generator.host, config.sample.steps, np.random.default_rng(0)
    noise = rng.normal(size=(host.cells, steps, BATCH, host.cell, host.channels))

    def draw(params, noise, labels):
        settings = Settings(guided=True, sampler="euler_maruyama", steps=steps)
        request = Request(labels, guidance_scale=2.0, settings=settings)
        return xar_sampler.sample_sequence(host, params, request, noise[:, 0], noise[:, 1:])

    args = params["host"], noise.astype(np.float32), _labels(config)
    return judged(latents=(distance(*both(setting, draw, *args)), 1e-4))


def mar(setting: Setting) -> dict[str, object]:
    """MAR's sampler with given order and noise."""
    config, generator, params = _model(setting, MAR)
    host, section, rng = generator.host, config.sample, np.random.default_rng(0)
    shape = (section.iterations, section.steps + 1, BATCH, host.length, host.channels)
    order = np.stack([rng.permutation(host.length) for _ in range(BATCH)]).astype(np.int32)
    settings = Settings(True, iterations=section.iterations, steps=section.steps, clip=2.0)

    def draw(params, noise, labels, order):
        def at(iteration, places):
            drawn = jnp.take_along_axis(noise[iteration], places[None, :, :, None], axis=2)
            return drawn[0], drawn[1:]

        request = Request(labels, guidance_scale=2.0, settings=settings)
        return mar_sampler.sample_tokens(host, params, request, order, at)

    noise = rng.normal(size=shape).astype(np.float32)
    args = params["host"], noise, _labels(config), order
    return judged(latents=(distance(*both(setting, draw, *args)), 1e-4))


def training(setting: Setting) -> dict[str, object]:
    """Five training steps of the masked-bit generator and of xAR on a learned basis."""
    errors, models_of = {}, {"masked_bit": BITS, "xar": XAR}
    for name, file in list(models_of.items())[: 1 if setting.tiny else None]:
        here = _trained(_config(setting, file), [setting.device], {})
        there = _trained(_config(setting, file), [setting.other], setting.options)
        errors[f"{name}_metrics"] = distance(here[0], there[0]), 1e-4
        errors[f"{name}_params"] = distance(here[1], there[1]), 1e-4
    return judged(**errors)


def attention(setting: Setting) -> dict[str, object]:
    """Attention in bfloat16, cuDNN's on NVIDIA, against plain attention in float32."""
    lengths, rng = LENGTHS[:2] if setting.tiny else LENGTHS, np.random.default_rng(0)
    shapes = [(2, length, 2, 64) for length in lengths]
    drawn = [[rng.normal(size=shape).astype(np.float32) for _ in range(4)] for shape in shapes]

    def one(causal, dtype, query, key, value, weight):
        q, k, v = (x.astype(dtype) for x in (query, key, value))
        function = functools.partial(attend, causal=causal)
        out, back = jax.vjp(function, q, k, v)
        return out, *back(weight.astype(dtype))

    def all_of_them(dtype, drawn):
        return [[one(causal, dtype, *four) for four in drawn] for causal in (True, False)]

    run = functools.partial(on, setting.device, {})
    fused = run(functools.partial(all_of_them, jnp.bfloat16), drawn)
    plain = run(functools.partial(all_of_them, jnp.float32), drawn)
    pairs = [
        [(distance(a[0], b[0]), distance(a[1:], b[1:])) for a, b in zip(x, y, strict=True)]
        for x, y in zip(fused, plain, strict=True)
    ]
    worst = np.max(pairs, axis=(0, 1))
    cuda = "cuda" in setting.device.client.platform_version.lower()
    by = "cuDNN" if cuda else "not applicable (no NVIDIA GPU): plain attention in bfloat16"
    return {"by": by, "lengths": lengths} | judged(
        forward=(float(worst[0]), 2e-2), backward=(float(worst[1]), 2e-2)
    )


def cache(setting: Setting) -> dict[str, object]:
    """Attention over a KV cache by all who can be had here, against XLA's in float32 on the CPU."""
    batch, length, heads, channels = 2, 289, 4, 64
    filled, rng = (1, 64, 100, length - 1), np.random.default_rng(0)
    drawn = rng.normal(size=(3, batch, length, heads, channels)).astype(np.float32)

    def outputs(kind, dtype, drawn):
        """Of a query after so many positions."""
        query, key, value = drawn.astype(dtype)
        out = []
        for start in filled:
            empty = decode_attention.empty_cache(kind, batch, length, heads, channels, dtype)
            piece = lambda x, a, b: x[:, a:b]
            before = [piece(x, 0, start) for x in (query, key, value)]
            _, kept = decode_attention.attend_cached(*before, empty, 0, causal=True)
            own = [piece(x, start, start + 1) for x in (query, key, value)]
            out.append(decode_attention.attend_cached(*own, kept, start, causal=True)[0])
        return out

    def outputs_of(kind, dtype, device, options):
        return on(device, options, functools.partial(outputs, kind, jnp.dtype(dtype)), drawn)

    wanted, errors = outputs_of("xla", "float32", setting.other, setting.options), {}
    for kind in decode_attention.KINDS:
        for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 2e-2)):
            try:
                decode_attention.choose(kind, dtype, channels, platform=setting.device.platform)
            except InputError:  # not for this device or dtype
                continue
            found = outputs_of(kind, dtype, setting.device, {})
            errors[f"{kind}_{dtype}"] = distance(found, wanted), tolerance
    return judged(**errors)


def low_precision(setting: Setting) -> dict[str, object]:
    """Loss, gradient and tokens in bfloat16, and in float32 as JAX multiplies it by default."""
    config, generator, params = _model(setting, BITS)
    batch = _batch(config, generator)

    def gradient(generator):
        function = functools.partial(_gradient, generator)
        return on(setting.device, {}, function, params, batch)

    def draw(generator):
        return on(setting.device, {}, functools.partial(_draw, generator), params)

    exact, wanted, errors, differing = gradient(generator), draw(generator), {}, {}
    config.dtype = "bfloat16"
    low = make_generator(config)
    for name, module, precision, bounds in (
        ("default", generator, "default", (1e-2, 5e-2)),
        ("bfloat16", low, "default", (3e-2, 1e-1)),
    ):
        with jax.default_matmul_precision(precision):
            found = gradient(module)
            differing[f"{name}_tokens"] = float(np.mean(draw(module) != wanted))
        errors[f"{name}_loss"] = abs(found[0] - exact[0]) / abs(exact[0]), bounds[0]
        errors[f"{name}_gradient"] = distance(found[1], exact[1]), bounds[1]
    # What a token that is drawn differently does to the next ones has no bound.
    return {"differing": differing} | judged(**errors)


def layouts(setting: Setting) -> dict[str, object]:
    """The same training on one device and on all of them, with data and with fsdp."""
    devices = [d for d in jax.devices() if d.platform == setting.device.platform]
    if len(devices) == 1:
        return {"ok": None, "not_applicable": "there is one device"}
    devices = devices[: 1 << min(len(devices), BATCH).bit_length() - 1]  # they share the batch
    config, errors = _config(setting, BITS), {}
    alone = _trained(config, devices[:1], {})
    for axis in ("fsdp",) if setting.tiny else ("data", "fsdp"):
        config.mesh.update(dict(data=1, fsdp=1) | {axis: -1})
        found = _trained(config, devices, {})
        errors[f"{axis}_metrics"] = distance(found[0], alone[0]), 1e-4
        errors[f"{axis}_params"] = distance(found[1], alone[1]), 1e-4
    return {"devices": len(devices)} | judged(**errors)


def saved(setting: Setting) -> dict[str, object]:
    """Parameters saved on the accelerator and restored on the CPU: fraction that differs."""
    config, generator, params = _model(setting, BITS)
    here = jax.device_put(params, setting.device)
    shapes = restore.param_shapes(
        lambda key: restore.init_generator(generator, key), make_mesh(devices=[setting.other])
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save_params(folder, here, workdir.to_json(config))
        there, _ = checkpoint.restore_params(folder, shapes)
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(there), strict=True)
    differing = max(float(np.mean(np.asarray(a) != np.asarray(b))) for a, b in leaves)
    return judged(params=(differing, 0.0))


CHECKS: dict[str, Callable[[Setting], dict[str, object]]] = {
    "loss": loss,
    "tokens": tokens,
    "tokenizer": tokenizer,
    "xar": xar,
    "mar": mar,
    "training": training,
    "attention": attention,
    "cache": cache,
    "low_precision": low_precision,
    "layouts": layouts,
    "checkpoint": saved,
}


# --- what they share -----------------------------------------------------------------------------


def _config(setting: Setting, file: str) -> ConfigDict:
    """A small model of the kind: width 256, 3 layers, 64 tokens; or tiny."""
    config = load_config(f"configs/{file}.py:tiny")
    config.dtype = "float32"
    config.train_generator.batch_size = BATCH
    if setting.tiny:
        config.model.generator.depth = 1
    else:
        config.data.image_size = 32
        config.model.generator.update(dict(width=256, depth=3, heads=4, class_repeats=4))
        config.model.head.update(dict(width=256, depth=2))
        for part in (config.model.tokenizer.encoder, config.model.tokenizer.decoder):
            part.update(dict(width=256, depth=3, heads=4, mlp_width=1024))
        config.sample.update(dict(steps=10, iterations=8))
    config.model.generator.update(dict(dropout=0.0, attention_dropout=0.0))
    return config


def _model(setting: Setting, file: str) -> tuple[ConfigDict, nn.Module, dict]:
    config = _config(setting, file)
    generator = make_generator(config)
    return config, generator, _generator_params(config, generator)


def _generator_params(config: ConfigDict, generator: nn.Module) -> dict:
    init = lambda key: restore.init_generator(generator, key)
    return _params(init, CALM if real_valued(config) else GAIN)


def _params(init: Callable[[jax.Array], dict], gain: float = GAIN) -> dict:
    """Random parameters of the shapes that `init` makes, on the host.

    Args:
      gain: of a linear layer; with 1 it keeps variances.
    """
    rng, shapes = np.random.default_rng(0), nn.unbox(jax.eval_shape(init, jax.random.key(0)))

    def one(path, leaf):
        drawn = rng.normal(size=leaf.shape).astype(np.float32)
        if "scale" in jax.tree_util.keystr(path[-1:]):  # of norms
            return 1 + 0.1 * drawn
        if "basis" in jax.tree_util.keystr(path):
            return np.linalg.qr(drawn)[0]
        return gain * drawn / np.sqrt(leaf.shape[0] if len(leaf.shape) > 1 else 10)

    return jax.tree_util.tree_map_with_path(lambda *leaf: np.float32(one(*leaf)), shapes)


def _labels(config: ConfigDict) -> np.ndarray:
    return np.arange(BATCH, dtype=np.int32) % config.data.num_classes


def _batch(config: ConfigDict, generator: nn.Module) -> dict[str, np.ndarray]:
    """Tokens as a cache has them, and labels."""
    rng, (kind, width) = np.random.default_rng(0), cached_as(config)
    shape = (BATCH, generator.token_shape[0], width)
    bits = rng.integers(0, 2, shape, np.uint8)
    drawn = rng.normal(size=shape).astype(np.float32) if kind == "float32" else bits
    return {"tokens": drawn, "label": _labels(config)}


def _gradient(generator: nn.Module, params: dict, batch: dict) -> tuple[jax.Array, dict]:
    keys = jax.random.split(jax.random.key(1), BATCH)

    def objective(params):
        draws = generator.draw(keys)
        args = batch["tokens"], batch["label"], draws, 0.0, True
        total, weight = generator.apply({"params": params}, *args, method=generator.loss)["loss"]
        return total / weight

    return jax.value_and_grad(objective)(params)


def _draw(generator: nn.Module, params: dict) -> jax.Array:
    """Bits of a batch at temperature 0, with guidance."""
    length, bits = generator.trunk.num_tokens, generator.trunk.bits
    schedule = tuple(bits // 4 for _ in range(4))
    shape = (BATCH, *generator.head.noise_shape(schedule))
    request = Request(
        labels=jnp.arange(BATCH),
        guidance_scale=3.0,
        temperature=0.0,
        settings=Settings(guided=True, unmasking_schedule=schedule),
    )
    order = jnp.broadcast_to(jnp.arange(length), (BATCH, length))
    return sample_tokens(generator, params, request, order, lambda i: jnp.full(shape, 0.5))


def _trained(config: ConfigDict, devices: list[jax.Device], options: dict) -> tuple[list, dict]:
    """Metrics of each of five steps, and the parameters after them, all on the host."""
    mesh = make_mesh(**config.mesh, devices=devices)
    generator = make_generator(config)
    program = generator_program(config, mesh, generator)
    _, shapes = init_state(program.init, jax.random.key(0), mesh)
    layout = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    step = jax.jit(
        program.step(0), out_shardings=(layout, replicated(mesh)), compiler_options=options
    )
    start = _generator_params(config, generator)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    with jax.set_mesh(mesh):
        state = jax.device_put(zeros.replace(params=start), layout)
        batch = jax.device_put(_batch(config, generator), batch_sharding(mesh))
        key = jax.device_put(jax.random.key(1), replicated(mesh))
        logged = []
        for _ in range(STEPS):
            state, metrics = step(state, batch, key, program.frozen)
            logged.append(metrics)
    return jax.device_get((logged, state.params))
