"""Every published config lowers for NVIDIA GPUs and for TPUs, without either to compile.

The gradients of all that it trains, in its own widths and dtype: on a GPU, JAX's front end has
refused what is fine on a CPU. What it refuses does not depend on depth, so a layer of each kind is
enough; configs that are the same then are lowered once. The optimizer is none, but for a config of
each architecture, where all of the step is lowered. And a sampler of each architecture down to
pixels, with two layers of each kind: it writes its layers out one after another.
"""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

from bar_jax import data
from bar_jax.config import flatten
from bar_jax.config.file import load_config
from bar_jax.generators import make_generator, sampling_settings
from bar_jax.generators.request import Request
from bar_jax.inspection import plan
from bar_jax.nn import attention
from bar_jax.runtime.mesh import make_mesh
from bar_jax.tokenizers import make_tokenizer, real_valued
from bar_jax.training import optimizer, restore

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
BATCH = 2
# Calls of cuDNN's attention, forward and backward, in a training step; scanned layers are one. That
# of real-valued tokens has dropout, and so no such call.
CALLS = {
    ("bar_fsq", "generator"): (1, 1),
    ("basis_fsq", "generator"): (1, 1),
    # The encoder, a frozen one (no gradient), the decoder, and DINO for real and made images; and
    # of a basis inside the tokenizer, the decoder for prefixes.
    ("bar_fsq", "tokenizer"): (4, 3),
    ("basis_fsq", "tokenizer"): (5, 4),
    ("bar_fsq", "discriminator"): (4, 0),
    ("basis_fsq", "discriminator"): (4, 0),
}
# One of each architecture, and BAR-L's 1057 positions; the others differ from these in sizes, in
# losses, or in having no basis. Of these all of the step is lowered, and the sampler.
USUAL = {"masked_bit/bar_b", "tokenizer/bar_fsq", "basis/xar_b", "basis/mar_b"}
DISTINCT = USUAL | {"masked_bit/bar_l_512", "basis/causal_b"}
FOLDERS = ("masked_bit", "tokenizer", "basis", "unified")
PLAYERS = ("generator", "tokenizer", "discriminator")
# Fields that a player's gradients depend on.
FIELDS = {
    "generator": r"model\.(generator\.(?!order)|head|basis|tokenizer\.(kind|bits|patch_size|kl))"
    r"|train_generator\.(accumulate|remat)",
    "tokenizer": r"model\.(tokenizer|basis)|train_tokenizer\.(accumulate|remat|stage|loss|network)",
}
FIELDS["discriminator"] = FIELDS["tokenizer"]


def _config(name: str):
    config = load_config(f"{ROOT}/configs/{name}.py")
    config.train_generator.batch_size = config.train_tokenizer.batch_size = BATCH
    return config


def _cut(name: str):
    """A config with a layer of each kind."""
    config = _config(name)
    for part in (config.model.generator, config.model.head, config.model.tokenizer.encoder):
        part.depth = 1
    config.model.tokenizer.decoder.update(dict(depth=1, predictor_layer=0))
    return config


def _left(config, player: str) -> tuple:
    """All that a player's gradients depend on: which of them are the same is said by these."""
    pattern = rf"dtype|data\.(image_size|num_classes)|{FIELDS[player]}"
    return tuple((n, v) for n, v in flatten(config) if re.match(pattern, n))


def _trains(config, player: str) -> bool:
    """Whether there is such a player; KL-16 and pixels are not trained."""
    if player == "generator":
        return config.job != "train_tokenizer"
    return not real_valued(config) and (player == "tokenizer" or config.train_tokenizer.loss.gan)


def _cases() -> list:
    """Name and player of all that published configs train; of those that are the same, one."""
    files = [f for name in FOLDERS for f in sorted(ROOT.glob(f"configs/{name}/*.py"))]
    names = [f"{file.parent.name}/{file.stem}" for file in files]
    found = {}  # what is left -> name and player
    # A tokenizer's own file rather than a generator's, all of a step rather than gradients.
    first = lambda name: (not name.startswith("tokenizer"), name not in DISTINCT)
    for name in sorted(names, key=first):
        config = _cut(name)
        for player in PLAYERS:
            if _trains(config, player):
                found.setdefault((player, _left(config, player)), (name, player))
    return [pytest.param(*case, marks=_marks(case[0])) for case in found.values()]


def _marks(name: str) -> list:
    return [pytest.mark.slow] if name in USUAL else [pytest.mark.exhaustive]


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


def _check(lowered, function, arguments, expected):
    """Lowers for a GPU, with so many calls of cuDNN, and for a TPU."""
    if any(expected):
        assert _calls(lowered(True, function, arguments)) == expected
        assert _calls(lowered(False, function, arguments)) == (0, 0)
    else:  # one program serves both
        assert _calls(lowered(True, function, arguments, ("cuda", "tpu"))) == (0, 0)


@pytest.mark.parametrize("name, player", _cases())
def test_training(name, player, mesh, lowered, monkeypatch):
    config = _cut(name)
    if name not in DISTINCT:
        config.train_generator.ema_decay = config.train_tokenizer.ema_decay = 0.0
        none = optax.sgd(1.0), lambda step: 1.0
        monkeypatch.setattr(optimizer, "from_section", lambda *_: none)
    step = plan.step_and_shapes(config, mesh, player)
    forward, backward = CALLS.get((config.model.tokenizer.kind, player), (0, 0))
    if player == "tokenizer" and config.train_tokenizer.stage == "decoder_finetune":
        backward -= 1  # the encoder's
    expected = (0, 0) if config.dtype == "float32" else (forward, backward)
    _check(lowered, *step, expected)


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


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=_marks(n)) for n in sorted(DISTINCT - {"tokenizer/bar_fsq"})],
)
def test_sampler(name, mesh, lowered):
    """From labels to pixels."""
    config = _config(name)
    config.model.generator.depth = 2
    config.sample.dtype = config.encode.dtype = config.dtype
    generator, tokenizer = make_generator(config), make_tokenizer(config)
    shape = jax.ShapeDtypeStruct

    def images(platform, params, decoder, labels, keys, guidance_scale, temperature):
        settings = sampling_settings(config, platform)  # `auto` is something else on each
        request = Request(labels, keys, guidance_scale, temperature, settings=settings)
        drawn = generator.sample(params, request)
        return data.to_uint8(tokenizer.apply({"params": decoder}, drawn, method=tokenizer.decode))

    arguments = (
        restore.param_shapes(functools.partial(restore.init_generator, generator), mesh),
        restore.param_shapes(functools.partial(restore.init_tokenizer, tokenizer), mesh),
        shape((BATCH,), jnp.int32),
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), BATCH)),
        *(shape((), jnp.float32),) * 2,
    )
    lowered(True, functools.partial(images, "gpu"), arguments)
    lowered(False, functools.partial(images, "tpu"), arguments)
