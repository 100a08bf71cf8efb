"""Tests of bar_jax/generators/request.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.generators.request import Request
from bar_jax.generators.settings import Settings
from bar_jax.runtime.errors import InputError

LABELS = jnp.array([1, 4])


@pytest.mark.parametrize("guided, rows", [(True, 4), (False, 2)])
def test_rows_are_those_of_all_branches(guided, rows):
    assert Request(LABELS, settings=Settings(guided)).rows == rows


def test_guidance_follows_the_schedule_of_the_settings():
    request = Request(LABELS, guidance_scale=3.0, settings=Settings(True))
    np.testing.assert_allclose(request.guidance(jnp.array([0, 1, 4]), 4), [1.0, 1.5, 3.0])
    constant = request.settings._replace(guidance_schedule="constant")
    np.testing.assert_allclose(request.replace(settings=constant).guidance(1, 4), 3.0)
    assert Request(LABELS, guidance_scale=3.0).guidance(1, 4) is None


def test_numbers_vary_and_settings_make_another_program():
    traced = []

    @jax.jit
    def run(request):
        traced.append(request.settings)
        return request.guidance_scale * request.labels

    for scale in (1.0, 2.0):
        run(Request(LABELS, guidance_scale=scale))
    run(Request(LABELS, settings=Settings(True)))
    assert traced == [Settings(False), Settings(True)]


@pytest.mark.parametrize(
    "name, change",
    [
        ("labels", dict(labels=jnp.array([5]))),
        ("temperature", dict(temperature=-1.0)),
        ("guidance_scale", dict(guidance_scale=float("nan"))),
    ],
)
def test_what_is_wrong_is_named(name, change):
    request = Request(LABELS, settings=Settings(True))
    request.check(4)
    with pytest.raises(InputError, match=f"^{name}: "):
        request.replace(**change).check(4)


def test_without_guidance_its_scale_is_not_looked_at():
    Request(LABELS, guidance_scale=float("nan")).check(4)
