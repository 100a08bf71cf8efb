"""Tests of bar_jax/tokenizers/basis_fsq.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict, meta

from bar_jax.bases import Basis
from bar_jax.tokenizers.bar_fsq import BarFSQ, parameter_group
from bar_jax.tokenizers.basis_fsq import BasisFSQ
from bar_jax.tokenizers.fsq import BOUNDARY

pytestmark = pytest.mark.slow
SIZES = FrozenDict({"width": 8, "depth": 1, "heads": 2, "mlp_width": 16})
WIDER = SIZES.copy({"width": 12})
BITS, SIDE, TOKENS = 5, 16, 16
# Squares of 4 px: a grid of 4 x 4.
ARGUMENTS = (SIDE, 4, BITS, SIZES, WIDER)


def tokenizer(kind="identity", gains=True, **basis):
    return BasisFSQ(*ARGUMENTS, basis=Basis(kind, **basis), gains=gains)


@functools.cache
def plain_params():
    """Random parameters of BAR-FSQ, with the quantiser's bias where both bits occur."""
    shapes = jax.eval_shape(BarFSQ(*ARGUMENTS).init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    rng = np.random.default_rng(0)
    fill = lambda s: rng.normal(size=s.shape).astype(np.float32) / 2
    params = jax.tree.map(fill, meta.unbox(shapes))["params"]
    params["quantizer"]["in_proj"]["bias"][:] = BOUNDARY
    return params


def params_of(module, spread=0.0):
    """The same, with the basis's own beside them."""
    A = module.start().astype(np.float32)
    rng = np.random.default_rng(1)
    A = A + spread * rng.normal(size=A.shape).astype(np.float32)
    gains = spread * rng.normal(size=(len(A), BITS)).astype(np.float32)
    return plain_params() | {"basis": A} | ({"basis_gains": gains} if module.gains else {})


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(2).uniform(-1, 1, (2, SIDE, SIDE, 3)).astype(np.float32)


def everything(module, params, images):
    """Bits, what they decode to, the reconstruction, and the gradient of its squared error."""

    def loss(params):
        return jnp.mean((module.apply({"params": params}, images).images - images) ** 2)

    bits = module.apply({"params": params}, images, method=module.encode)
    decoded = module.apply({"params": params}, bits, method=module.decode)
    output = module.apply({"params": params}, images)
    return bits, decoded, output.images, output.codes, jax.grad(loss)(params)


compiled = jax.jit(everything, static_argnums=0)


@pytest.mark.parametrize("gains", [pytest.param(True, marks=pytest.mark.exhaustive), False])
def test_the_identity_with_gains_of_one_is_the_plain_tokenizer(images, gains):
    """Bit for bit: tokens, images, codes, and gradients of the parameters that both have.

    Operation by operation: compiled together, XLA adds up a gradient's terms in another order.
    """
    module = tokenizer(gains=gains)
    *found, gradient = everything(module, params_of(module), images)
    *expected, plain = everything(BarFSQ(*ARGUMENTS), plain_params(), images)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    shared = {name: gradient[name] for name in plain}
    jax.tree.map(np.testing.assert_array_equal, shared, plain)


def by_hand(module, params, images):
    """Codes and decoded latents in float64, from the latents of the network."""
    z = module.apply({"params": params}, images, method=module.project)
    A, gains = np.float64(params["basis"]), np.exp(np.float64(params["basis_gains"]))
    codes = np.where(np.einsum("kn,bnd->bkd", A, np.float64(z)) > 0, 1, -1)
    inverse = np.linalg.pinv(A)
    return codes, np.einsum("nk,bkd->bnd", inverse, codes * gains)


@pytest.mark.parametrize(
    "kind, length",
    [
        pytest.param("frequency", 16, marks=pytest.mark.exhaustive),
        pytest.param("random_orthogonal", 16, marks=pytest.mark.exhaustive),
        pytest.param("scales", 21, marks=pytest.mark.exhaustive),
        ("compact", 4),
        ("learned", 16),
    ],
)
def test_bits_are_the_signs_of_coefficients_and_come_back_through_the_inverse(images, kind, length):
    module = tokenizer(kind, init="haar")
    params = params_of(module, spread=0.2)
    codes, z = by_hand(module, params, images)
    assert module.length == length == codes.shape[1]
    bits, decoded, reconstruction, found, _ = compiled(module, params, images)
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_array_equal(bits, codes > 0)
    expand = lambda module, codes: module.quantizer.expand(codes)
    expected = module.apply({"params": params}, jnp.float32(z), method=expand)
    got = module.apply({"params": params}, jnp.float32(codes), method=module.expand)
    np.testing.assert_allclose(got, expected, atol=2e-5)
    np.testing.assert_allclose(decoded, reconstruction, atol=1e-5)


def test_missing_coefficients_are_zero(images):
    """Of the first m bits the decoder sees what m coefficients say, the others being 0."""
    module = tokenizer("frequency")
    params = params_of(module, spread=0.2)
    bits, _, _, codes, _ = compiled(module, params, images)
    lengths = jnp.array([3, 16])
    prefix = lambda m: module.apply({"params": params}, bits[:, :m], method=module.decode)
    found = module.apply({"params": params}, codes, lengths, method=module.from_prefix)
    np.testing.assert_allclose(found, jnp.stack([prefix(3)[0], prefix(16)[1]]), atol=1e-5)
    zeroed = codes.at[:, 3:].set(0)
    shown = module.apply({"params": params}, zeroed, method=module.expand)
    expected = module.apply({"params": params}, shown, method=module.render)[0]
    np.testing.assert_allclose(prefix(3), expected, atol=1e-5)


@pytest.mark.parametrize("tokens", [0, 17])
def test_other_numbers_of_tokens_are_refused(tokens):
    module = tokenizer("frequency")
    bits = np.zeros((1, tokens, BITS), np.uint8)
    with pytest.raises(ValueError, match=f"^bits: found {tokens} tokens, expected 1 to 16"):
        module.apply({"params": params_of(module)}, bits, method=module.decode)


def test_a_plain_tokenizer_takes_missing_tokens_for_zero_codes(images):
    module, params = BarFSQ(*ARGUMENTS), plain_params()
    bits, *_, codes, _ = compiled(module, params, images)
    found = module.apply({"params": params}, bits[:, :5], method=module.decode)
    shown = module.apply({"params": params}, codes.at[:, 5:].set(0), method=module.expand)
    expected = module.apply({"params": params}, shown, method=module.render)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_gain_is_the_size_that_bits_are_told_apart_at(images):
    """Doubling latents (their projection and its boundary) and gains doubles what comes back."""
    module = tokenizer("frequency")
    params = params_of(module)
    z = module.apply({"params": params}, images, method=module.project)
    twice = params | {"basis_gains": params["basis_gains"] + np.float32(np.log(2))}
    codes = [
        module.apply({"params": p}, scale * z, method=module.quantize)
        for p, scale in ((params, 1), (twice, 2))
    ]
    np.testing.assert_array_equal(*codes)
    sizes = [
        module.apply({"params": p}, codes[0], method=module.coefficients) for p in (params, twice)
    ]
    np.testing.assert_allclose(sizes[1], 2 * sizes[0], rtol=1e-6)
    slope = lambda p, scale: jax.grad(
        lambda z: module.apply({"params": p}, z, method=module.quantize).sum()
    )(scale * z)
    np.testing.assert_allclose(slope(twice, 2), slope(params, 1) / 2, rtol=1e-4, atol=1e-6)


def test_the_basis_and_its_gains_are_trained(images):
    module = tokenizer("learned", init="frequency")
    *_, gradient = compiled(module, params_of(module), images)
    assert np.any(gradient["basis"]) and np.any(gradient["basis_gains"])


def test_features_need_no_basis(images):
    """Those that the feature predictor aims at are of SigLIP2's weights alone."""
    encoder = {name: plain_params()[name] for name in ("patch_embedding", "encoder_vit")}
    found = [
        module.apply({"params": encoder}, images, method=module.features)
        for module in (tokenizer("frequency"), BarFSQ(*ARGUMENTS))
    ]
    np.testing.assert_array_equal(*found)


def test_groups_of_the_new_parameters():
    assert parameter_group(("basis",)) == "basis"
    assert parameter_group(("basis_gains",)) == "quantizer"
