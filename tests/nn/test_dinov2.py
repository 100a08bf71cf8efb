"""Tests of bar_jax/nn/dinov2.py: parity with Hugging Face's model, and with Pillow's resizing."""

import jax
import numpy as np
import pytest
from PIL import Image

from bar_jax.nn.dinov2 import DINOv2
from bar_jax.pretrained.dinov2 import dinov2_params
from tests.torch_models import with_random_parameters

# Hugging Face's names -> torch.hub's. Those of attention come in two generations of transformers;
# the three parts of qkv are joined apart.
NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "attention.attention.": "attn.",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "attention.q_proj": "attn.query",
    "attention.k_proj": "attn.key",
    "attention.v_proj": "attn.value",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "encoder.layer": "blocks",
    "layernorm.": "norm.",
}


def hub_tensors(model):
    """A state dict of Hugging Face's model under torch.hub's names."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        for theirs, hub in NAMES.items():
            name = name.replace(theirs, hub)
        tensors[name] = tensor.numpy()
    for layer in range(model.config.num_hidden_layers):
        attention = f"blocks.{layer}.attn"
        for kind in ("weight", "bias"):
            parts = [
                tensors.pop(f"{attention}.{part}.{kind}") for part in ("query", "key", "value")
            ]
            tensors[f"{attention}.qkv.{kind}"] = np.concatenate(parts)
    return tensors


@pytest.fixture(scope="module")
def model():
    """Hugging Face's DINOv2, small, with random parameters: images of 28 px in 2 x 2 patches."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=14
    )
    return with_random_parameters(transformers.Dinov2Model(config), 1 / 4)


@pytest.mark.parametrize("size", [(28, 28), (20, 20), (40, 64)])
def test_matches_hugging_face(model, size):
    import torch

    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    resized = [Image.fromarray(image).resize((28, 28), Image.BICUBIC) for image in images]
    mean, std = np.asarray([0.485, 0.456, 0.406]), np.asarray([0.229, 0.224, 0.225])
    pixels = (np.stack(resized) / 255 - mean) / std
    with torch.no_grad():
        given = torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float()
        expected = model(given).last_hidden_state[:, 0].numpy()
    params = dinov2_params(hub_tensors(model), heads=4, grid=2)
    net = DINOv2(32, 3, 4, 128, image_size=28)
    found = jax.jit(net.apply)({"params": params}, images)["class_token"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
