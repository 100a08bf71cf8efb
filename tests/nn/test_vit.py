"""Tests of bar_jax/nn/vit.py."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from bar_jax.nn.vit import ViT, ViTBlock, patchify, unpatchify

WIDTH, DEPTH, HEADS, MLP = 8, 2, 2, 12
GRID = (2, 2)


def vit(**changes):
    return ViT(WIDTH, DEPTH, HEADS, MLP, **changes)


def filled(module, x):
    """Random parameters, so that no scale is 1 and no bias 0."""
    shapes = meta.unbox(jax.eval_shape(lambda k: module.init(k, x, GRID), jax.random.key(0)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32) / 2, shapes)


def apply(module, params, x):
    return jax.jit(lambda p, x: module.apply(p, x, GRID))(params, x)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(1).normal(size=(2, 4, WIDTH)).astype(np.float32)


def layer_norm(x, p, eps):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * p["scale"] + p["bias"]


def numpy_gelu(h, kind):
    if kind == "tanh":
        return 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    if kind == "quick":
        return h / (1 + np.exp(-1.702 * h))
    return 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))


def numpy_vit(module, params, x):
    """The same network in float64, head by head."""
    eps = module.norm_eps
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"])
    x = x.astype(np.float64)
    if module.class_token:
        front = np.broadcast_to(params["class_embedding"], (x.shape[0], 1, WIDTH))
        x = np.concatenate([front, x], axis=1)
    x = x + params["position_embedding"]
    if module.pre_norm:
        x = layer_norm(x, params["pre_norm"], eps)
    for layer in range(DEPTH):
        p = jax.tree.map(lambda a, layer=layer: a[layer], params["blocks"])
        h = layer_norm(x, p["attention_norm"], eps)
        for head in range(HEADS):
            q, k, v = (
                h @ p["qkv"]["kernel"][:, i, head] + p["qkv"]["bias"][i, head] for i in range(3)
            )
            weights = np.exp(q @ k.swapaxes(1, 2) / math.sqrt(WIDTH // HEADS))
            if module.causal:
                weights = np.tril(weights)
            weights /= weights.sum(-1, keepdims=True)
            x = x + weights @ v @ p["out"]["kernel"][head] * p.get("attention_scale", 1)
        x = x + p["out"]["bias"] * p.get("attention_scale", 1)
        h = layer_norm(x, p["mlp_norm"], eps)
        h = h @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"]
        h = numpy_gelu(h, module.gelu) @ p["mlp"]["down"]["kernel"] + p["mlp"]["down"]["bias"]
        x = x + h * p.get("mlp_scale", 1)
    return layer_norm(x, params["norm"], eps)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"gelu": "tanh"}, id="encoder"),
        pytest.param({"class_token": True, "pre_norm": True}, id="decoder"),
        pytest.param({"class_token": True, "layer_scale": True}, id="DINOv2"),
        pytest.param({"class_token": True, "pre_norm": True, "gelu": "quick"}, id="CLIP"),
        pytest.param({"causal": True, "gelu": "quick"}, id="CLIP's text"),
    ],
)
def test_matches_numpy(tokens, changes):
    """The epsilon is large, so that one that is not used shows."""
    module = vit(norm_eps=0.1, **changes)
    params = filled(module, tokens)
    expected = numpy_vit(module, params, tokens)
    np.testing.assert_allclose(apply(module, params, tokens), expected, atol=1e-5)


def test_scan_equals_the_blocks_one_after_another(tokens):
    module = vit()
    params = filled(module, tokens)
    block = ViTBlock(HEADS, MLP, gelu="exact", norm_eps=1e-6, dtype=jnp.float32)

    @jax.jit
    def unrolled(params, x):
        params = params["params"]
        x = x + params["position_embedding"][None]
        for layer in range(DEPTH):
            sliced = jax.tree.map(lambda a, layer=layer: a[layer], params["blocks"])
            (x, _), _ = block.apply({"params": sliced}, (x, None))
        return jax.vmap(jax.vmap(lambda v: _normed(v, params["norm"])))(x)

    def _normed(v, p):
        return (v - v.mean()) / jnp.sqrt(v.var() + 1e-6) * p["scale"] + p["bias"]

    np.testing.assert_allclose(apply(module, params, tokens), unrolled(params, tokens), atol=1e-5)


@pytest.mark.parametrize("remat", [False, True])
def test_keeps_the_outputs_of_layers(tokens, remat):
    """What goes into the first block; what comes out of it, as a shorter transformer has it."""
    module = vit(keep=(-1, 0), final_norm=False, remat=remat)
    params = filled(module, tokens)["params"]
    x, kept = apply(module, {"params": params}, tokens)
    np.testing.assert_allclose(kept[0], tokens + params["position_embedding"], rtol=1e-6)
    first = params | {"blocks": jax.tree.map(lambda a: a[:1], params["blocks"])}
    short = ViT(WIDTH, 1, HEADS, MLP, final_norm=False)
    np.testing.assert_allclose(kept[1], apply(short, {"params": first}, tokens), atol=1e-6)
    plain = apply(vit(final_norm=False), {"params": params}, tokens)
    np.testing.assert_allclose(x, plain, atol=1e-6)


def test_bfloat16_keeps_float32_parameters(tokens):
    module = vit(dtype=jnp.bfloat16)
    params = filled(module, tokens)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    assert apply(module, params, tokens).dtype == jnp.float32  # the residual stream's


def test_patchify_puts_patches_in_raster_order():
    """A 4x6 image whose pixels hold (row, column): patch 1 of size 2 is rows 0-1, columns 2-3."""
    image = np.stack(np.meshgrid(np.arange(4), np.arange(6), indexing="ij"), axis=-1)[None]
    patches = patchify(image, 2)
    assert patches.shape == (1, 6, 8)
    np.testing.assert_array_equal(patches[0, 1], [0, 2, 0, 3, 1, 2, 1, 3])
    np.testing.assert_array_equal(patches[0, 3], [2, 0, 2, 1, 3, 0, 3, 1])


def test_unpatchify_is_the_inverse_of_patchify():
    images = np.random.default_rng(0).normal(size=(2, 4, 6, 3))
    np.testing.assert_array_equal(unpatchify(patchify(images, 2), (2, 3), 2), images)
