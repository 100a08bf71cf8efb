"""Tests of bar_jax/nn/clip.py: parity with Hugging Face's model and its preprocessing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from bar_jax.nn.clip import CLIP
from bar_jax.pretrained.clip import clip_params
from tests.torch_models import tensors_of, with_random_parameters

NET = CLIP(
    width=32,
    depth=3,
    heads=4,
    image_size=28,
    text_width=24,
    text_depth=2,
    text_heads=3,
    vocabulary=60,
    context=9,
    features=16,
)
START, END = 58, 59


@pytest.fixture(scope="module")
def model():
    """Hugging Face's CLIP at these sizes with random parameters."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPConfig(
        text_config={
            "vocab_size": 60,
            "hidden_size": 24,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "max_position_embeddings": 9,
            "bos_token_id": START,
            "eos_token_id": END,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
        projection_dim=16,
    )
    return with_random_parameters(transformers.CLIPModel(config))


@pytest.fixture(scope="module")
def params(model):
    return clip_params(tensors_of(model), heads=4, text_heads=3)


def features(output):
    """Of Hugging Face's methods, which return an array or a structure by version."""
    return getattr(output, "pooler_output", output).detach().numpy()


def test_fills_every_parameter(params):
    images, tokens = jnp.zeros((1, 28, 28, 3)), jnp.zeros((1, 9), jnp.int32)
    fresh = meta.unbox(jax.eval_shape(NET.init, jax.random.key(0), images, tokens))["params"]
    shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
    assert shapes(params) == shapes(fresh)


@pytest.mark.parametrize("size", [(28, 28), (20, 20), (40, 53), (53, 28)])
def test_images_match_hugging_face(model, params, size):
    """The middle of an oblong, 28 of its shorter side: here 28 to 37 px, an odd rest, and 53."""
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    sides = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    processor = module.CLIPImageProcessorPil(**sides)
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    given = processor(list(images), return_tensors="pt")["pixel_values"]
    apply = jax.jit(lambda p, x: NET.apply({"params": p}, x, method="image_features"))
    expected = features(model.get_image_features(given))
    np.testing.assert_allclose(apply(params, images), expected, atol=1e-5)


def test_texts_match_hugging_face(model, params):
    """Whatever follows the first end: nothing, zeros as CLIP pads, or more ends."""
    import torch

    tokens = np.zeros((3, 9), np.int32)
    tokens[0] = [START, 1, 2, 3, 4, 5, 6, 7, END]
    tokens[1, :4] = [START, 3, 4, END]
    tokens[2] = [START, 5, END, END, END, END, END, END, END]
    apply = jax.jit(lambda p, t: NET.apply({"params": p}, t, method="text_features"))
    expected = features(model.get_text_features(torch.from_numpy(tokens).long()))
    np.testing.assert_allclose(apply(params, tokens), expected, atol=1e-5)
