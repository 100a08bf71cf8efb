"""Tests of bar_jax/metrics/timing.py, at sizes of no interest."""

from types import SimpleNamespace

from bar_jax.metrics import timing
from bar_jax.runtime.mesh import make_mesh
from tests import feature_stand_ins as stand_ins


def test_every_step_is_timed():
    found = timing.time_numbers(samples=40, reference=20, size=8)
    names = ("moments", "frechet", "inception_score", "kid", "precision_recall")
    assert set(found) == {f"{name}_seconds" for name in names}
    assert all(seconds >= 0 for seconds in found.values())


def test_rates_are_of_images(monkeypatch):
    """A clock that moves by a second whenever it is read."""
    clock = iter(range(10))
    monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    network = stand_ins.network("inception")
    found = timing.time_features(
        make_mesh(), network, "inception/pool", batch_size=8, size=4, batches=3
    )
    assert found == {"first_batch_seconds": 1, "images_per_second": 24}
