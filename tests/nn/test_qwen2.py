"""Tests of bar_jax/nn/qwen2.py: parity with Hugging Face's model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from bar_jax.nn.qwen2 import Qwen2
from bar_jax.pretrained.qwen2 import qwen2_params

NET = Qwen2(width=32, depth=2, heads=4, kv_heads=2, mlp_width=48, vocabulary=50, rotary_base=1e3)


@pytest.fixture(scope="module")
def model():
    """Hugging Face's Qwen2 at these sizes with random parameters."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e3},
        rms_norm_eps=1e-6,
    )
    model = transformers.Qwen2Model(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 3
    return model


@pytest.fixture(scope="module")
def params(model):
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return qwen2_params(tensors, heads=4, kv_heads=2)


@jax.jit
def states(params, tokens, mask):
    return NET.apply({"params": params}, tokens, mask)


def test_fills_every_parameter(params):
    tokens = jnp.zeros((1, 3), jnp.int32)
    fresh = jax.eval_shape(NET.init, jax.random.key(0), tokens, tokens > 0)
    shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
    assert shapes(params) == shapes(meta.unbox(fresh)["params"])


def test_hidden_states_match_hugging_face(model, params):
    import torch

    tokens = np.random.default_rng(0).integers(0, 50, (3, 7))
    mask = np.arange(7) < np.array([[7], [4], [1]])
    expected = model(torch.from_numpy(tokens), torch.from_numpy(mask)).last_hidden_state
    found = states(params, tokens, mask)
    np.testing.assert_allclose(found[mask], expected.detach().numpy()[mask], atol=1e-5)


def test_padding_changes_nothing(params):
    tokens = np.random.default_rng(0).integers(0, 50, (2, 7))
    mask = np.arange(7)[None] < np.array([[4], [4]])
    others = np.where(mask, tokens, 49 - tokens)
    found, changed = (np.asarray(states(params, t, mask)) for t in (tokens, others))
    np.testing.assert_array_equal(found[mask], changed[mask])
