"""Tests of bar_jax/training/generator.py: what a training step is given."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from bar_jax.bases import Basis
from bar_jax.config import default_config
from bar_jax.runtime.mesh import make_mesh
from bar_jax.training import generator as generator_lib
from bar_jax.training.step import Keys

BATCH = {"tokens": np.zeros((1, 2, 3)), "label": np.zeros(1, int), "mask": np.ones(1, bool)}
KEYS = jax.random.split(jax.random.key(0), 1)


def given(kind, step):
    """What a generator on a basis of this kind is called with, annealed from step 100 to 300."""
    seen = {}
    tokenizer = SimpleNamespace(latents=lambda cached, keys: seen.update(latents=keys))
    generator = recording(seen, kind)
    loss_fn = generator_lib.make_loss_fn(generator, tokenizer, 100, 300, jax.random.key(2))
    loss_fn({}, BATCH, Keys(KEYS, jax.random.key(1), step))
    return seen


def recording(seen, kind="random"):
    """A generator that keeps what it is given."""

    def apply(_, tokens, labels, draws, share, **options):
        seen.update(share=share, **options)
        return {"loss": (0.0, 1.0)}

    draw = lambda keys, batch_key=None: seen.update(draws=keys, batch=batch_key)
    return SimpleNamespace(apply=apply, basis=Basis(kind), draw=draw, loss=None)


def bits_of(key):
    return np.asarray(jax.random.key_data(key)).tolist()


@pytest.mark.parametrize("step, share", [(0, 1), (100, 1), (150, 0.75), (250, 0.25), (300, 0)])
def test_the_share_of_random_orders_is_annealed(step, share):
    assert given("random", step)["share"] == pytest.approx(share)


def test_a_fixed_order_is_never_random():
    assert given("raster", 0)["share"] == 0.0


def test_training_drops_labels():
    assert given("random", 0)["deterministic"] is False


def test_validation_keeps_labels_and_orders():
    seen = {}
    arguments = recording(seen), SimpleNamespace(), {}, BATCH, jax.random.key(0)
    generator_lib._loss.__wrapped__(*arguments)
    assert (seen["share"], seen["deterministic"]) == (0.0, True)


def test_latents_and_what_the_generator_draws_have_keys_of_their_own():
    seen = given("random", 0)
    assert bits_of(seen["draws"]) == bits_of(KEYS) != bits_of(seen["latents"])


def test_what_is_drawn_once_for_a_batch_is_drawn_anew_in_every_step():
    assert bits_of(given("random", 0)["batch"]) != bits_of(given("random", 1)["batch"])


def test_batches_of_validation_have_keys_of_their_own(monkeypatch):
    keys = []

    def loss(*arguments):
        keys.append(bits_of(arguments[-1]))
        return {"loss": (1.0, 1.0)}

    monkeypatch.setattr(generator_lib, "_loss", loss)
    generator_lib.validation_loss(None, None, {}, [BATCH] * 2, jax.random.key(0))
    assert len(keys) == 2 and keys[0] != keys[1]


def test_validation_takes_batches_until_it_has_the_images(monkeypatch):
    monkeypatch.setattr(generator_lib.data, "token_eval_batches", lambda *_, **__: [BATCH] * 9)
    mesh = make_mesh(devices=jax.devices()[:1])
    assert len(list(generator_lib.validation_batches(None, mesh, batch_size=1, images=2))) == 2


def test_epochs_of_annealing_are_counted_in_the_generators_batches():
    """10 epochs of 1000 images in batches of 50, whatever the tokenizer's are."""
    config = default_config()
    config.train_generator.batch_size, config.train_tokenizer.batch_size = 50, 8
    config.model.generator.order.anneal_end_epochs = 10.0
    assert generator_lib.anneal_steps(config, 1000)[1] == 200
