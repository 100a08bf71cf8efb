"""Tests of bar_jax/jobs/train_generator.py: what a training step is told; runs: test_resume.py."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from bar_jax.bases import Basis
from bar_jax.config import default_config
from bar_jax.config.presets import tiny
from bar_jax.jobs import train_generator
from bar_jax.runtime.mesh import make_mesh

BATCH = {"tokens": np.zeros((1, 2, 3)), "label": np.zeros(1, int), "mask": np.ones(1, bool)}
KEYS = jax.random.split(jax.random.key(0), 1)


def told(kind, step):
    """What a generator on a basis of this kind is called with, annealed from step 100 to 300."""
    seen = {}
    tokenizer = SimpleNamespace(latents=lambda cached, keys: seen.update(latents=keys))
    generator = recording(seen, kind)
    loss_fn = train_generator.make_loss_fn(generator, tokenizer, 100, 300, jax.random.key(2))
    loss_fn({}, BATCH, KEYS, jax.random.key(1), step)
    return seen


def recording(seen, kind="random"):
    """A generator that keeps what it is told."""

    def apply(_, tokens, labels, draws, share, **options):
        seen.update(share=share, **options)
        return {"loss": (0.0, 1.0)}

    draw = lambda keys, batch_key=None: seen.update(draws=keys, batch=batch_key)
    return SimpleNamespace(apply=apply, basis=Basis(kind), draw=draw, loss=None)


def bits_of(key):
    return np.asarray(jax.random.key_data(key)).tolist()


@pytest.mark.parametrize("step, share", [(0, 1), (100, 1), (150, 0.75), (250, 0.25), (300, 0)])
def test_the_share_of_random_orders_is_annealed(step, share):
    assert told("random", step)["share"] == pytest.approx(share)


def test_a_fixed_order_is_never_random():
    assert told("raster", 0)["share"] == 0.0


def test_training_drops_labels():
    assert told("random", 0)["deterministic"] is False


def test_validation_keeps_labels_and_orders():
    seen = {}
    arguments = recording(seen), SimpleNamespace(), {}, BATCH, jax.random.key(0)
    train_generator._loss.__wrapped__(*arguments)
    assert (seen["share"], seen["deterministic"]) == (0.0, True)


def test_latents_and_what_the_generator_draws_have_keys_of_their_own():
    seen = told("random", 0)
    assert bits_of(seen["draws"]) == bits_of(KEYS) != bits_of(seen["latents"])


def test_what_is_drawn_once_for_a_batch_is_drawn_anew_in_every_step():
    assert bits_of(told("random", 0)["batch"]) != bits_of(told("random", 1)["batch"])


def test_batches_of_validation_have_keys_of_their_own(monkeypatch):
    keys = []
    monkeypatch.setattr(train_generator.data, "token_eval_batches", lambda *_, **__: [BATCH] * 2)
    monkeypatch.setattr(train_generator.mesh_lib, "put_batch", lambda _, arrays: arrays)

    def loss(*arguments):
        keys.append(bits_of(arguments[-1]))
        return {"loss": (1.0, 1.0)}

    monkeypatch.setattr(train_generator, "_loss", loss)
    mesh = make_mesh(devices=jax.devices()[:1])
    train_generator.validation_loss(None, None, {}, None, mesh, seed=0, batch_size=1, limit=2)
    assert len(keys) == 2 and keys[0] != keys[1]


def test_epochs_of_annealing_are_counted_in_the_generators_batches():
    """10 epochs of 1000 images in batches of 50, whatever the tokenizer's are."""
    config = default_config()
    config.train_generator.batch_size, config.train_tokenizer.batch_size = 50, 8
    config.model.generator.order.anneal_end_epochs = 10.0
    assert train_generator.anneal_step(config, "end", 1000) == 200


@pytest.mark.parametrize(
    ("kind", "end", "lines"),
    [
        ("random", 300, ["300 steps, in a run of 250; 0.25 of the orders are random to its end"]),
        ("random", 250, []),
        ("raster", 300, []),
    ],
    ids=["too late", "in time", "none"],
)
def test_annealing_that_never_comes_to_its_end_is_told(monkeypatch, caplog, kind, end, lines):
    """In one line, before there is a program to compile."""
    config = tiny(default_config())
    config.data.source, config.model.basis.kind = "tokens", kind
    config.model.generator.order.update(dict(anneal_start_steps=100, anneal_end_steps=end))
    monkeypatch.setattr(train_generator.models, "find_tokenizer", lambda *_: None)
    monkeypatch.setattr(train_generator, "packed_fingerprint", lambda *_: "")
    monkeypatch.setattr(train_generator.caches, "open_split", lambda *_: [0])
    monkeypatch.setattr(train_generator.workdir, "begin_training", lambda *_: "folder")
    monkeypatch.setattr(train_generator, "one_player", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(
        train_generator.loop, "train", lambda *_, make_program, **__: make_program(250, 1, 0)
    )
    with pytest.raises(ZeroDivisionError):
        train_generator.run(config)
    assert caplog.messages == [f"model.generator.order.anneal_end: {line}" for line in lines]
