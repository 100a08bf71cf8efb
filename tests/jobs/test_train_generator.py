"""Tests of bar_jax/jobs/train_generator.py; whole runs are in tests/test_resume.py."""

import pytest

from bar_jax.config import default_config
from bar_jax.config.presets import tiny
from bar_jax.jobs import train_generator
from bar_jax.training.optimizer import Durations


@pytest.mark.parametrize(
    ("kind", "end", "lines"),
    [
        ("random", 300, ["300 steps, in a run of 250; 0.25 of the orders are random to its end"]),
        ("random", 250, []),
        ("raster", 300, []),
    ],
    ids=["too late", "in time", "none"],
)
def test_annealing_that_never_comes_to_its_end_is_reported(monkeypatch, caplog, kind, end, lines):
    """In one line, before there is a program to compile."""
    config = tiny(default_config())
    config.data.source, config.model.basis.kind = "tokens", kind
    config.model.generator.order.update(dict(anneal_start_steps=100, anneal_end_steps=end))
    monkeypatch.setattr(train_generator.restore, "find_tokenizer", lambda *_: None)
    monkeypatch.setattr(train_generator, "packed_fingerprint", lambda *_: "")
    monkeypatch.setattr(train_generator.caches, "open_split", lambda *_: [0])
    monkeypatch.setattr(train_generator.workdir, "begin_training", lambda *_: "folder")
    monkeypatch.setattr(train_generator, "make_program", lambda *_: 1 / 0)
    train = lambda stage, mesh: stage.make_program(Durations(steps=250, warmup=1))
    monkeypatch.setattr(train_generator.loop, "train", train)
    with pytest.raises(ZeroDivisionError):
        train_generator.run(config)
    assert caplog.messages == [f"model.generator.order.anneal_end: {line}" for line in lines]
