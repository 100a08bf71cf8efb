"""Tests of bar_jax/nn/bert.py: parity with Hugging Face's model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from bar_jax.nn.bert import BERT
from bar_jax.pretrained.bert import bert_params

NET = BERT(width=24, depth=2, heads=3, mlp_width=40, vocabulary=50, positions=9)


@pytest.fixture(scope="module")
def model():
    """Hugging Face's BERT at these sizes with random parameters."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=9,
    )
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 3
    return model


@pytest.fixture(scope="module")
def params(model):
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return bert_params(tensors, heads=3)


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
