"""Every published config lowers for NVIDIA GPUs, some for TPUs too, without either to compile.

Its training steps with gradients, at full size and in its own dtype: on a GPU, JAX's front end has
refused what is fine on a CPU. Of configs that differ in width, depth and heads alone one is enough
where cuDNN has no part in them. And a sampler of each architecture down to pixels, with two layers
of each kind: it writes its layers out one after another, and they are all alike.
"""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from bar_jax import data, models
from bar_jax.config import flatten
from bar_jax.config_file import load_config
from bar_jax.generators import make_generator
from bar_jax.generators.settings import sampling_settings
from bar_jax.jobs import plan
from bar_jax.mesh import make_mesh
from bar_jax.nn import attention
from bar_jax.tokenizers import make_tokenizer

ROOT = Path(__file__).resolve().parents[1]
BATCH = 2
# Calls of cuDNN's attention, forward and backward, in a training step; scanned layers are one.
CALLS = {
    ("masked_bit", "generator"): (1, 1),
    ("unified", "generator"): (1, 1),
    ("basis", "generator"): (0, 0),  # attention dropout
    # The encoder, a frozen one (no gradient), the decoder, and DINO for real and made images; and
    # of a basis inside the tokenizer, the decoder for prefixes.
    ("tokenizer", "tokenizer"): (4, 3),
    ("bar_fsq_ft", "tokenizer"): (4, 2),  # whose encoder is not trained
    ("unified", "tokenizer"): (5, 4),
    ("tokenizer", "discriminator"): (4, 0),
    ("unified", "discriminator"): (4, 0),
}
SMALL = {"cifar10", "digits", "digits_causal"}  # tests/test_pipeline.py trains them
# One of each architecture, and BAR-L's 1057 positions; the others differ from these in sizes, in
# schedules, or in having no basis. These are lowered for TPUs too.
DISTINCT = {
    *("masked_bit/bar_b", "masked_bit/bar_l_512", "tokenizer/bar_fsq"),
    *("basis/xar_b", "basis/mar_b", "basis/causal_b"),
}


def _config(name: str):
    config = load_config(f"{ROOT}/configs/{name}.py")
    config.train_generator.batch_size = config.train_tokenizer.batch_size = BATCH
    return config


def _kind(name: str) -> tuple:
    """What says which program a config's steps are: all of its networks, but for how large.

    Sizes of heads decide whether cuDNN takes them; those of `basis` it never has.
    """
    fields = {n: v for n, v in flatten(_config(name)) if re.search("^model|image_size|remat", n)}
    if name.startswith("basis/"):
        fields = {n: v for n, v in fields.items() if not n.endswith((".width", ".depth", ".heads"))}
    return tuple(fields.items())


def _cases(*folders: str) -> list:
    """Names of the published configs, the first of each kind, as parameters of a test."""
    files = [f for name in folders for f in sorted(ROOT.glob(f"configs/{name}/*.py"))]
    names = [f"{file.parent.name}/{file.stem}" for file in files if file.stem not in SMALL]
    if "tokenizer" not in folders:
        names = {_kind(name): name for name in reversed(names)}.values()
    return [pytest.param(n, marks=[pytest.mark.slow] * (n not in DISTINCT)) for n in names]


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture
def lowered(monkeypatch, mesh):
    """The program of a function, lowered as if there were such a device, as text.

    A function of whether that is an NVIDIA GPU, another function, its arguments' shapes, and the
    platforms to lower for, if not for that alone.
    """
    try:
        from jax._src.cudnn import fused_attention_stablehlo as cudnn
    except ImportError:  # another version of JAX has it elsewhere
        cudnn = None
    answers = dict(
        check_cudnn_version=lambda: 91000,
        check_compute_capability=lambda _: True,
        is_cuda_compute_capability_equal=lambda _: False,
    )
    for name, answer in answers.items():
        if hasattr(cudnn, name):
            monkeypatch.setattr(cudnn, name, answer)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # samplers ask whether it is a CPU

    def lower(nvidia, function, arguments, platforms=None):
        monkeypatch.setattr(attention, "has_fused_attention", lambda: nvidia)
        with jax.set_mesh(mesh):
            # A function that JAX has not seen: what it traced may not be the same now.
            traced = jax.jit(lambda *x: function(*x)).trace(*arguments)
        return traced.lower(
            lowering_platforms=platforms or ("cuda" if nvidia else "tpu",)
        ).as_text()

    return lower


def _calls(text: str) -> tuple[int, int]:
    """Calls of cuDNN's attention, forward and backward."""
    found = re.findall(r"custom_call @__cudnn\$fmhaSoftmax(\w*)", text)
    return found.count(""), found.count("Backward")


def _check(lowered, function, arguments, expected, tpu=True):
    """Lowers for a GPU, with so many calls of cuDNN, and for a TPU."""
    if any(expected):
        assert _calls(lowered(True, function, arguments)) == expected
        if tpu:
            assert _calls(lowered(False, function, arguments)) == (0, 0)
    else:  # one program serves both
        platforms = ("cuda", "tpu") if tpu else ("cuda",)
        assert _calls(lowered(True, function, arguments, platforms)) == (0, 0)


@pytest.mark.parametrize("name", _cases("masked_bit", "unified", "basis"))
def test_generator_step(name, mesh, lowered):
    step = plan.step_and_shapes(_config(name), mesh, "generator")
    _check(lowered, *step, CALLS[name.split("/")[0], "generator"], name in DISTINCT)


@pytest.mark.parametrize("player", ["tokenizer", "discriminator"])
@pytest.mark.parametrize("name", _cases("tokenizer", "unified"))
def test_tokenizer_step(name, player, mesh, lowered):
    step = plan.step_and_shapes(_config(name), mesh, player)
    folder, file = name.split("/")
    _check(lowered, *step, CALLS.get((file, player), CALLS[folder, player]), name in DISTINCT)


def test_float32_is_not_for_cudnn(mesh, lowered):
    config = _config("masked_bit/bar_b_4")
    config.dtype = "float32"
    _check(lowered, *plan.step_and_shapes(config, mesh, "generator"), (0, 0))


# Position counts of the causal models, and of networks with a class token that see 14 x 14 and
# 16 x 16 patches.
@pytest.mark.parametrize("length, causal", [(289, True), (77, True), (197, False), (257, False)])
def test_attention_of_odd_lengths(length, causal, lowered):
    def outputs(*qkv):
        out, backward = jax.vjp(functools.partial(attention.attend, causal=causal), *qkv)
        return backward(out)

    x = jax.ShapeDtypeStruct((BATCH, length, 4, 64), jnp.bfloat16)
    _check(lowered, outputs, (x, x, x), (1, 1))


@pytest.mark.parametrize("name", sorted(DISTINCT - {"tokenizer/bar_fsq"}))
def test_sampler(name, mesh, lowered):
    """From labels to pixels."""
    config = _config(name)
    config.model.generator.depth = 2
    config.sample.dtype = config.encode.dtype = config.dtype
    generator, tokenizer = make_generator(config), make_tokenizer(config)
    shape = jax.ShapeDtypeStruct

    def images(platform, params, decoder, labels, keys, guidance_scale, temperature):
        settings = sampling_settings(config, platform)  # `auto` is something else on each
        scales = guidance_scale, temperature
        drawn = generator.sample(params, labels, keys, settings, *scales)
        return data.to_uint8(tokenizer.apply({"params": decoder}, drawn, method=tokenizer.decode))

    arguments = (
        models.param_shapes(functools.partial(models.init_generator, generator), mesh),
        models.param_shapes(functools.partial(models.init_tokenizer, tokenizer), mesh),
        shape((BATCH,), jnp.int32),
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), BATCH)),
        *(shape((), jnp.float32),) * 2,
    )
    lowered(True, functools.partial(images, "gpu"), arguments)
    lowered(False, functools.partial(images, "tpu"), arguments)
