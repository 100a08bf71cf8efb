"""Tests of bar_jax/runtime/arguments.py, and of the doors it keeps: nothing here is compiled."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.bases import Basis
from bar_jax.generators.basis import BasisGenerator
from bar_jax.generators.causal import CausalTransformer
from bar_jax.generators.masked_bit import MaskedBitGenerator
from bar_jax.generators.request import Request
from bar_jax.generators.settings import Settings
from bar_jax.generators.xar import XAR
from bar_jax.heads.bit import BitHead
from bar_jax.heads.linear import LinearHead
from bar_jax.heads.masked_bit import MaskedBitHead
from bar_jax.runtime import arguments
from bar_jax.runtime.errors import InputError
from bar_jax.tokenizers.bar_fsq import BarFSQ
from bar_jax.tokenizers.kl_vae import KLVAE
from bar_jax.tokenizers.pixels import Pixels

CLASSES, BITS, GRID = 4, 4, (2, 2)
SIZES = dict(num_classes=CLASSES, width=16, depth=1, heads=4)
TRUNK = CausalTransformer(BITS, GRID, output_width=12, class_repeats=2, **SIZES)
MASKED = MaskedBitGenerator(TRUNK, MaskedBitHead(BITS, 12, 1), GRID)
XAR_HOST = XAR(channels=3, grid=GRID, cell_size=1, **SIZES)
REAL = BasisGenerator(XAR_HOST, Basis("identity"), GRID)
TOWER = dict(width=8, depth=1, heads=2, mlp_width=8)
TOKENIZERS = {
    "bar_fsq": BarFSQ(image_size=8, patch_size=4, bits=BITS, encoder=TOWER, decoder=TOWER),
    "kl_vae": KLVAE(image_size=8, width=32, multipliers=(1, 1, 1), channels=3, attention_levels=()),
    "pixels": Pixels(image_size=8, patch_size=4),
}
LABELS, BITS_OF_2 = np.array([0, 3]), np.zeros((2, 4, BITS), np.uint8)
IMAGES, TOKENS = np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 4, 3), np.float32)


def changed(x, value):
    """A copy whose last number is another."""
    x = np.array(x)
    x.flat[-1] = value
    return x


# --- what a check says ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (np.array([0, 99]), "int64[2] from 0 to 99"),
        (jnp.array([0, -1]), "int32[2] from -1 to 0"),
        (np.array([0.0, 1.0]), "float64[2]"),
        (np.zeros((2, 1), int), "int64[2, 1]"),
        ([0, 1], "a list"),
    ],
)
def test_labels(labels, found):
    with pytest.raises(InputError, match="^labels: found .*integers .B. from 0 to 4$") as error:
        arguments.check_labels(labels, 4)
    assert str(error.value).startswith(f"labels: found {found}, expected")


@pytest.mark.parametrize("last", [0, 3])
def test_the_last_label_is_one(last):
    arguments.check_labels(np.array([0, last]), last)


@pytest.mark.parametrize(
    ("bits", "found"),
    [
        (np.full((2, 4), 7), "int64[2, 4] from 7 to 7"),
        (np.full((2, 4), -1), "int64[2, 4] from -1 to -1"),
        (np.zeros((2, 4)), "float64[2, 4]"),
        (np.zeros((2, 3), int), "int64[2, 3]"),
    ],
)
def test_bits(bits, found):
    with pytest.raises(InputError) as error:
        arguments.check_bits(bits, "B", 4)
    assert str(error.value) == f"bits: found {found}, expected bits {{0, 1}} [B, 4]"


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 1e39, "5", True, 1j, None, np.ones(2)])
def test_no_scale(value):
    with pytest.raises(
        InputError, match="^temperature: found .*, expected a number of at least 0$"
    ):
        arguments.number("temperature", value)


@pytest.mark.parametrize("value", [0, 2.5, np.float32(2.5), np.array(2.5), jnp.float32(2.5)])
def test_a_scale(value):
    arguments.check_scale("temperature", value)
    assert arguments.number("temperature", value) == float(value)


def test_inside_a_program_types_and_shapes_alone_are_looked_at():
    check = lambda labels, bits: (
        arguments.check_labels(labels, 3) or arguments.check_bits(bits, 2, 4)
    )
    jax.eval_shape(check, jnp.full(2, 99), jnp.full((2, 4), 7))
    with pytest.raises(InputError, match=r"labels: found float32\[2\]"):
        jax.eval_shape(check, jnp.ones(2), jnp.ones((2, 4), int))
    with pytest.raises(InputError, match=r"bits: found int32\[2, 5\]"):
        jax.eval_shape(check, jnp.ones(2, int), jnp.ones((2, 5), int))


# --- the doors -----------------------------------------------------------------------------------


def masked_loss(bits, labels):
    return MASKED.apply({}, bits, labels, None, 0.0, True, method=MASKED.loss)


def real_loss(tokens, labels):
    return REAL.apply({}, tokens, labels, None, 0.0, True, method=REAL.loss)


def sample(generator, labels=LABELS, guidance_scale=2.0, temperature=1.0, **settings):
    keys = jax.random.split(jax.random.key(0), 2)
    settings = Settings(True, (1, 3), **settings)
    request = Request(labels, keys, guidance_scale, temperature, settings=settings)
    return generator.sample({}, request)


@pytest.mark.parametrize("label", [-1, CLASSES, 99])
@pytest.mark.parametrize(
    "loss", [lambda x: masked_loss(BITS_OF_2, x), lambda x: real_loss(TOKENS, x)]
)
def test_a_loss_is_of_classes(loss, label):
    """99 had the loss of "no class"."""
    with pytest.raises(InputError, match=r"^labels: found .* expected integers \[B\] from 0 to 3"):
        loss(changed(LABELS, label))


@pytest.mark.parametrize("label", [-1, CLASSES + 1])
@pytest.mark.parametrize("generator", [MASKED, REAL], ids=["bits", "real"])
def test_samples_are_of_classes_or_of_none(generator, label):
    with pytest.raises(InputError, match=r"^labels: found .* expected integers \[B\] from 0 to 4"):
        sample(generator, changed(LABELS, label))


@pytest.mark.parametrize("generator", [MASKED, REAL], ids=["bits", "real"])
@pytest.mark.parametrize("name", ["guidance_scale", "temperature"])
def test_scales_are_numbers(generator, name):
    with pytest.raises(InputError, match=f"^{name}: found nan, expected a number of at least 0"):
        sample(generator, **{name: math.nan})


@pytest.mark.parametrize("tokens", [-1, 5])
def test_there_are_no_more_tokens_than_there_are(tokens):
    with pytest.raises(InputError, match=f"^settings.tokens: found {tokens}, expected 1 to 4"):
        sample(MASKED, tokens=tokens)


@pytest.mark.parametrize("head", [BitHead, LinearHead, functools.partial(MaskedBitHead, depth=1)])
def test_a_head_writes_bits(head, key):
    head, bits = head(BITS, 12), changed(BITS_OF_2.reshape(8, 4), 7)
    with pytest.raises(InputError, match=r"^bits: found uint8\[8, 4\] from 0 to 7"):
        head.init(key, np.zeros((8, 12)), bits, None, method=head.loss)


def test_a_generator_of_bits_models_bits():
    with pytest.raises(InputError, match=r"^bits: found uint8\[2, 4, 4\] from 0 to 7"):
        masked_loss(changed(BITS_OF_2, 7), LABELS)


@pytest.mark.parametrize(
    "tokens", [TOKENS.astype(np.uint8), changed(TOKENS, np.nan), TOKENS[:, 1:]]
)
def test_a_generator_of_numbers_models_numbers(tokens):
    """What pixels are cached as, 8 bits, is not what is modelled."""
    with pytest.raises(InputError, match="^tokens: found .*, expected floating-point numbers"):
        real_loss(tokens, LABELS)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("images", [IMAGES.astype(np.uint8), IMAGES[0], changed(IMAGES, np.inf)])
def test_a_tokenizer_takes_images(kind, images):
    """Of 8 bits they would be far outside of [-1, 1]."""
    tokenizer = TOKENIZERS[kind]
    with pytest.raises(InputError, match=r"^images: found .*, expected .* \[B, 8, 8, 3\]"):
        tokenizer.apply({}, images, method=tokenizer.encode)


@pytest.mark.parametrize(
    ("kind", "tokens", "found"),
    [
        ("bar_fsq", changed(BITS_OF_2, 7), r"bits: found uint8\[2, 4, 4\] from 0 to 7"),
        ("bar_fsq", BITS_OF_2[..., 1:], r"bits: found uint8\[2, 4, 3\]"),
        ("kl_vae", changed(TOKENS, np.nan), r"x: found float32\[2, 4, 3\], 1 of it not finite"),
        ("kl_vae", TOKENS[:, 1:], r"x: found float32\[2, 3, 3\]"),
        ("pixels", TOKENS, r"x: found float32\[2, 4, 3\], expected .* \[B, 4, 48\]"),
    ],
)
def test_a_tokenizer_takes_tokens(kind, tokens, found):
    tokenizer = TOKENIZERS[kind]
    with pytest.raises(InputError, match=f"^{found}"):
        tokenizer.apply({}, tokens, method=tokenizer.decode)
