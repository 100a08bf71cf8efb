"""Tests of bar_jax/training/optimizer.py."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bar_jax.config import default_config
from bar_jax.config.file import load_config
from bar_jax.generators import make_generator
from bar_jax.training import restore
from bar_jax.training.optimizer import adamw, decays, warmup_cosine

NO_DECAY = default_config().train_generator.optimizer.no_decay


@pytest.mark.parametrize(
    "step, rate",
    [
        (0, 0.0),
        (5, 0.5),
        (10, 1.0),
        (35, 0.868198),  # 0.1 + 0.45 (1 + cos(pi / 4))
        (60, 0.55),
        (110, 0.1),
        (120, 0.122025),  # 0.1 + 0.45 (1 + cos(1.1 pi)): the cosine goes on
    ],
)
def test_warmup_cosine(step, rate):
    np.testing.assert_allclose(warmup_cosine(1.0, 0.1, 10, 110)(step), rate, atol=2e-6)


def test_without_warmup_the_peak_comes_first():
    assert warmup_cosine(1.0, 0.1, 0, 100)(0) == 1.0


def test_what_does_not_decay():
    """The published rule: norms, biases, embeddings, every adaLN; the start vector does decay."""
    names = {
        "start": True,
        "blocks/qkv/kernel": True,
        "blocks/mlp/up/kernel": True,
        "token_proj/kernel": True,
        "blocks/qkv/bias": False,
        "blocks/query_norm/scale": False,
        "blocks/adaln/kernel": False,
        "out_adaln/kernel": False,
        "class_embedding": False,
        "time_embed_in/kernel": False,
        "out_embed/kernel": False,
        "basis": False,
    }
    params = {name: {"x": np.zeros(2)} for name in names}
    assert {name: on["x"] for name, on in decays(params, NO_DECAY).items()} == names


def test_how_many_parameters_of_bar_b_decay():
    """Counted in the published code; by the config's own list."""
    config = load_config("configs/masked_bit/bar_b.py")
    generator = make_generator(config)
    init = lambda key: nn.unbox(restore.init_generator(generator, key))
    params = jax.eval_shape(init, jax.random.key(0))
    on = decays(params, config.train_generator.optimizer.no_decay)
    sizes = jax.tree.map(lambda decayed, leaf: leaf.size if decayed else 0, on, params)
    assert sum(jax.tree.leaves(sizes)) == 276_884_224


def updates(tx, params, gradients):
    """The updates of successive gradients."""
    state, all_updates, step = tx.init(params), [], jax.jit(tx.update)
    for gradient in gradients:
        update, state = step(gradient, state, params)
        all_updates.append(update)
    return all_updates


def tx(**changes):
    settings = {"b1": 0.9, "b2": 0.96, "weight_decay": 0.0, "clip_norm": 1.0, "no_decay": NO_DECAY}
    return adamw(lambda step: 0.1 * (step + 1), **(settings | changes))


def test_gradients_are_clipped_to_the_global_norm():
    """Of norm 5 (over two arrays) to norm 1; one of norm 0.5 stays."""
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    long = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    short = {"a": jnp.array([0.3, 0.0]), "b": jnp.array([0.4])}
    clipped = {"a": jnp.array([0.6, 0.0]), "b": jnp.array([0.8])}
    got = updates(tx(), params, [short, long])
    expected = updates(tx(clip_norm=1e9), params, [short, clipped])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected)


def test_two_steps_of_adam_by_hand():
    """Moments 0.1 g1, 0.04 g1^2, then decayed and added to; bias corrected; rates 0.1, 0.2."""
    g1, g2 = 0.5, -0.2
    first, second = updates(tx(), {"a": jnp.zeros(1)}, [{"a": jnp.array([g])} for g in (g1, g2)])
    m, v = 0.1 * g1, 0.04 * g1**2
    expected = [-0.1 * (m / 0.1) / np.sqrt(v / 0.04)]
    m, v = 0.9 * m + 0.1 * g2, 0.96 * v + 0.04 * g2**2
    expected.append(-0.2 * (m / (1 - 0.81)) / np.sqrt(v / (1 - 0.96**2)))
    np.testing.assert_allclose([first["a"][0], second["a"][0]], expected, rtol=1e-5)


def test_weight_decay_is_decoupled_and_spares_the_rest():
    """Without a gradient a parameter shrinks by rate * decay, a bias does not."""
    params = {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])}
    zero = optax.tree.zeros_like(params)
    (update,) = updates(tx(weight_decay=0.03), params, [zero])
    np.testing.assert_allclose(update["kernel"], [-0.1 * 0.03 * 2.0], rtol=1e-6)
    np.testing.assert_array_equal(update["bias"], [0.0])
