"""Tests of bar_jax/inspection/timing.py: batches that fit, and what is timed."""

import types

import jax
import jax.numpy as jnp
import pytest

from bar_jax.inspection import timing


def at(fits, rates=None):
    """A measurement for which batches up to `fits` have memory."""

    def measure(size):
        if size > fits:
            raise timing.OutOfMemory(f"the program needs {size} of {fits} GB")
        return {"batch_size": size, "images_per_second": (rates or {}).get(size, size)}

    return measure


def sizes(told):
    return [each["batch_size"] for each in told["batches"]]


def test_the_first_that_fits_ends_the_sweep():
    told = timing.sweep(at(100), (256, 128, 64, 32), first_that_fits=True)
    assert told["batch_size"] == 64 and sizes(told) == [256, 128, 64]
    assert ["out_of_memory" in each for each in told["batches"]] == [True, True, False]


def test_all_are_measured_and_the_fastest_counts():
    told = timing.sweep(at(200, {16: 9.0, 128: 5.0}), (1, 16, 128, 256), first_that_fits=False)
    assert told["batch_size"] == 16 and sizes(told) == [1, 16, 128, 256]


def test_what_has_no_rate_of_its_own_is_told_at_its_largest_batch():
    told = timing.sweep(lambda size: {"tokenizer": {"seconds": [size]}}, (2, 8, 4), False)
    assert told["batch_size"] == 8 and told["tokenizer"] == {"seconds": [8]}


def test_if_none_fits_it_is_raised():
    with pytest.raises(timing.OutOfMemory, match="needs 64 of 1"):
        timing.sweep(at(1), (128, 64), first_that_fits=True)


def test_other_errors_end_the_sweep():
    def broken(size):
        raise jax.errors.JaxRuntimeError("INTERNAL: no such kernel")

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        timing.sweep(broken, (2, 1), first_that_fits=False)


def test_a_device_says_that_its_memory_is_full():
    def full(size):
        if size > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
        return {"batch_size": size, "images_per_second": 1.0}

    assert timing.sweep(full, (2, 1), first_that_fits=True)["batch_size"] == 1


def test_a_program_larger_than_the_device_is_not_run(monkeypatch):
    small = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": 1000})
    monkeypatch.setattr(jax, "devices", lambda: [small])
    with pytest.raises(timing.OutOfMemory):
        timing.timed(jax.jit(jnp.sum), (jnp.zeros(1000),), repeats=1)
    assert len(timing.timed(jax.jit(jnp.sum), (jnp.zeros(10),), repeats=2).seconds) == 2


def test_what_a_repetition_gives_is_fed_to_the_next():
    seen = []

    def feed(args, out):
        seen.append(int(out))
        return (out,)

    timing.timed(jax.jit(lambda x: x + 1), (jnp.int32(0),), repeats=3, feed=feed)
    assert seen == [1, 2, 3, 4]
