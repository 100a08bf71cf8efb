"""Tests of bar_jax/jobs/train_generator.py: what a training step is told; runs: test_resume.py."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from bar_jax.bases import Basis
from bar_jax.config import default_config
from bar_jax.config_presets import tiny
from bar_jax.jobs import train_generator


def told(kind, step):
    """What a generator on a basis of this kind is called with, annealed from step 100 to 300."""
    seen = {}

    def apply(_, tokens, labels, draws, share, **options):
        seen.update(share=share, **options)
        return {"loss": (0.0, 1.0)}

    generator = SimpleNamespace(apply=apply, basis=Basis(kind), draw=lambda *_: None, loss=None)
    loss_fn = train_generator.make_loss_fn(generator, SimpleNamespace(), 100, 300)
    batch = {"tokens": np.zeros((1, 2, 3)), "label": np.zeros(1, int)}
    loss_fn({}, batch, jax.random.split(jax.random.key(0), 1), jax.random.key(1), step)
    return seen


@pytest.mark.parametrize("step, share", [(0, 1), (100, 1), (150, 0.75), (250, 0.25), (300, 0)])
def test_the_share_of_random_orders_is_annealed(step, share):
    assert told("random", step)["share"] == pytest.approx(share)


def test_a_fixed_order_is_never_random():
    assert told("raster", 0)["share"] == 0.0


def test_training_drops_labels():
    assert told("random", 0)["deterministic"] is False


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
    for name, value in dict(load_tokenizer=None, packed_fingerprint="", open_split=[0]).items():
        monkeypatch.setattr(train_generator.encode, name, lambda *_, value=value: value)
    monkeypatch.setattr(train_generator.workdir, "begin_training", lambda *_: "folder")
    monkeypatch.setattr(train_generator, "one_player", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(
        train_generator.loop, "train", lambda *_, make_program, **__: make_program(250, 1, 0)
    )
    with pytest.raises(ZeroDivisionError):
        train_generator.run(config)
    assert caplog.messages == [f"model.generator.order.anneal_end: {line}" for line in lines]
