"""Tests of bar_jax/pretrained/siglip2.py: parity with Hugging Face's network, and other files."""

import jax
import numpy as np
import pytest

from bar_jax.pretrained import siglip2
from bar_jax.runtime.errors import InputError
from bar_jax.tokenizers.bar_fsq import BarFSQ

PATCH, WIDTH, DEPTH, HEADS, MLP = 4, 32, 2, 4, 40
SIZES = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "mlp_width": MLP}


def published(state_dict, prefix):
    return {prefix + name: tensor.numpy() for name, tensor in state_dict.items()}


@pytest.fixture(scope="module")
def theirs():
    """Hugging Face's vision tower with random weights and positions for 7 x 7 patches."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Siglip2VisionConfig(
        hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=DEPTH,
        num_attention_heads=HEADS, num_patches=49, patch_size=PATCH,
    )  # fmt: skip
    model = transformers.Siglip2VisionModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("side", [4, 7, 8])
@pytest.mark.parametrize("prefix", siglip2.PREFIXES)
def test_same_features(theirs, side, prefix):
    """Of images of fewer patches than there are positions, as many, and more."""
    import torch

    images = np.random.default_rng(side).uniform(-1, 1, (2, side * PATCH, side * PATCH, 3))
    images = images.astype(np.float32)
    rows = images.reshape(2, side, PATCH, side, PATCH, 3).swapaxes(2, 3)
    with torch.no_grad():
        expected = theirs(
            pixel_values=torch.from_numpy(rows.reshape(2, side**2, -1)),
            pixel_attention_mask=torch.ones(2, side**2, dtype=torch.int64),
            spatial_shapes=torch.full((2, 2), side),
        ).last_hidden_state.numpy()
    bare = {name.removeprefix("vision_model."): x for name, x in theirs.state_dict().items()}
    tensors = published(bare, prefix)
    assert siglip2.find_prefix("file", tensors) == prefix
    params = siglip2.encoder_params(tensors, depth=DEPTH, heads=HEADS, prefix=prefix)
    module = BarFSQ(side * PATCH, PATCH, 3, SIZES, SIZES, position_grid=7)
    run = jax.jit(lambda params: module.apply({"params": params}, images, method=module.features))
    np.testing.assert_allclose(run(params), expected, atol=5e-5, rtol=2e-4)


def tower(**shapes):
    """Three tensors of a tower of 2 layers."""
    shapes = {
        "vision_model.embeddings.patch_embedding.weight": (8, 48),
        "vision_model.embeddings.position_embedding.weight": (49, 8),
        "vision_model.encoder.layers.0.mlp.fc1.bias": (5,),
        "vision_model.encoder.layers.1.mlp.fc1.bias": (5,),
        "text_model.encoder.layers.2.mlp.fc1.bias": (5,),
        **shapes,
    }
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def test_sizes_of_the_vision_tower_alone():
    sizes = {"width": 8, "depth": 2, "positions": 49, "values of a patch": 48}
    assert siglip2.sizes(tower(), "vision_model.") == sizes


def test_a_tower_of_fixed_resolution():
    convolution = {"vision_model.embeddings.patch_embedding.weight": (8, 3, 4, 4)}
    with pytest.raises(InputError, match=r"file: found a SigLIP of fixed resolution .* \[8, 3, 4"):
        siglip2.find_prefix("file", tower(**convolution))


def test_no_tower():
    with pytest.raises(InputError, match="file: found no tensor vision_model.embeddings.patch"):
        siglip2.find_prefix("file", {"decoder.class_embedding": np.zeros((1, 4))})
