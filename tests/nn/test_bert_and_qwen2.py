"""Tests of bar_jax/nn/bert.py and qwen2.py: parity with Hugging Face's models."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from bar_jax.nn.bert import BERT
from bar_jax.nn.qwen2 import Qwen2
from bar_jax.pretrained.bert import bert_params
from bar_jax.pretrained.qwen2 import qwen2_params
from tests.torch_models import tensors_of, with_random_parameters


def bert(transformers):
    """The module, the published model at its sizes, and how its weights are read."""
    net = BERT(width=24, depth=2, heads=3, mlp_width=40, vocabulary=50, positions=9)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=9,
    )
    model = transformers.BertModel(config, add_pooling_layer=False)
    return net, model, functools.partial(bert_params, heads=3)


def qwen2(transformers):
    """The same; another base of the rotary embedding than by default."""
    net = Qwen2(
        width=32, depth=2, heads=4, kv_heads=2, mlp_width=48, vocabulary=50, rotary_base=1e3
    )
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
    model = transformers.Qwen2Model(config)
    return net, model, functools.partial(qwen2_params, heads=4, kv_heads=2)


@pytest.fixture(scope="module", params=[bert, qwen2], ids=["bert", "qwen2"])
def case(request):
    """A module with the random parameters of the published model."""
    pytest.importorskip("torch")
    net, model, read = request.param(pytest.importorskip("transformers"))
    params = read(tensors_of(with_random_parameters(model)))
    apply = jax.jit(lambda params, tokens, mask: net.apply({"params": params}, tokens, mask))
    states = functools.partial(apply, params)
    return SimpleNamespace(net=net, model=model, params=params, states=states)


def test_fills_every_parameter(case):
    tokens = jnp.zeros((1, 3), jnp.int32)
    fresh = jax.eval_shape(case.net.init, jax.random.key(0), tokens, tokens > 0)
    shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
    assert shapes(case.params) == shapes(meta.unbox(fresh)["params"])


def test_hidden_states_match_hugging_face(case):
    import torch

    tokens = np.random.default_rng(0).integers(0, 50, (3, 7))
    mask = np.arange(7) < np.array([[7], [4], [1]])
    expected = case.model(torch.from_numpy(tokens), torch.from_numpy(mask)).last_hidden_state
    found = case.states(tokens, mask)
    np.testing.assert_allclose(found[mask], expected.detach().numpy()[mask], atol=1e-5)


def test_padding_changes_nothing(case):
    tokens = np.random.default_rng(0).integers(0, 50, (2, 7))
    mask = np.arange(7)[None] < np.array([[4], [4]])
    others = np.where(mask, tokens, 49 - tokens)
    found, changed = (np.asarray(case.states(t, mask)) for t in (tokens, others))
    np.testing.assert_array_equal(found[mask], changed[mask])
