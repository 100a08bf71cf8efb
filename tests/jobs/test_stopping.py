"""Loops over batches that may take minutes ask at each batch whether the run is to stop."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from bar_jax.config import default_config
from bar_jax.jobs import basis_tokens
from bar_jax.metrics import tokenizer as tokenizer_metrics
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime import preemption
from bar_jax.sampling import evaluation
from bar_jax.training import generator as generator_lib

BATCHES = [{"image": np.zeros((8, 2, 2, 3), np.uint8), "mask": np.ones(8, bool), "bits": None}] * 2
NOTHING = SimpleNamespace(module=None, params=None)


def validation_loss(mesh, patch):
    patch.setattr(generator_lib.data, "token_eval_batches", lambda *_, **__: BATCHES)
    batches = generator_lib.validation_batches(None, mesh, 8, 16)
    generator_lib.validation_loss(None, None, None, batches, None)


def reconstructions(mesh, patch):
    for name, value in dict(open_images=None, spread=None, eval_batches=BATCHES).items():
        patch.setattr(tokenizer_metrics.data, name, lambda *_, value=value, **__: value)
    tokenizer_metrics.measure(default_config(), mesh, None, None, 8)


def samples(mesh, patch):
    patch.setattr(evaluation, "draw", lambda *_: BATCHES)
    measuring = SimpleNamespace(networks=[], metrics=())
    evaluation.measure_generator(default_config(), mesh, measuring, (NOTHING, NOTHING))


def psnr_of_prefixes(mesh, patch):
    basis_tokens._psnr(mesh, NOTHING, BATCHES, [1])


def accuracy_of_prefixes(mesh, patch):
    judge = SimpleNamespace(name="classifier")
    basis_tokens._accuracy(mesh, NOTHING, BATCHES, [1], judge)


def generated_bits(mesh, patch):
    generator = SimpleNamespace(module=None, params=None)
    list(basis_tokens._generated(default_config(), mesh, generator))


@pytest.mark.parametrize(
    "loop",
    [
        *(validation_loss, reconstructions, samples),
        *(psnr_of_prefixes, accuracy_of_prefixes, generated_bits),
    ],
)
def test_it_asks_before_it_computes(loop, monkeypatch):
    monkeypatch.setattr(preemption, "asked", lambda: True)
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    with pytest.raises(preemption.Preempted), jax.set_mesh(mesh):
        loop(mesh, monkeypatch)
