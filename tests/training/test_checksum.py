"""Tests of bar_jax/training/checksum.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.runtime import mesh as mesh_lib
from bar_jax.training.checksum import checksums

DTYPES = ("float32", "bfloat16", "int32", "uint8", "bool")


def numbers(dtype="float32", shape=(8, 6, 4)):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape) > 0, dtype)


def one(x) -> int:
    [value] = checksums({"x": x}).values()
    return value


def test_arrays_are_named_by_their_paths():
    tree = {"a": {"kernel": jnp.zeros(2)}, "b": [jnp.zeros(()), None]}
    assert list(checksums(tree)) == ["a/kernel", "b/0"]


@pytest.mark.parametrize("bit", [0, 7, 22, 31])
@pytest.mark.parametrize("place", [(0, 0, 0), (3, 5, 1), (7, 5, 3)])
def test_any_bit_changes_it(place, bit):
    x = np.array(numbers())
    x.view(np.uint32)[place] ^= np.uint32(1 << bit)
    assert one(jnp.asarray(x)) != one(numbers())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_numbers_that_change_places_change_it(dtype, axis):
    assert one(jnp.roll(numbers(dtype), 1, axis)) != one(numbers(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_in_place_of_numbers_change_it(dtype):
    """What Orbax reads of a chunk that is not there."""
    x = numbers(dtype)
    assert one(x.at[4:].set(0)) != one(x)


@pytest.mark.parametrize("shape", [(), (0,), (3,)])
def test_it_is_a_uint32(shape):
    assert 0 <= one(jnp.ones(shape)) < 2**32


@pytest.mark.parametrize("layout", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_it_does_not_depend_on_the_layout(layout):
    mesh = mesh_lib.make_mesh(*layout)
    cut = jax.sharding.NamedSharding(mesh, jax.P("fsdp", None, "tensor"))
    assert one(jax.device_put(numbers(), cut)) == one(numbers())
