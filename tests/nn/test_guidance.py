"""Tests of bar_jax/nn/guidance.py."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.nn import guidance


@pytest.mark.parametrize("scale, expected", [(0.0, 1.0), (1.0, 3.0), (2.5, 6.0)])
def test_from_the_unconditional_through_the_conditional(scale, expected):
    """The conditional half comes first: 1 + s (3 - 1)."""
    outputs = jnp.concatenate([jnp.full((2, 4), 3.0), jnp.full((2, 4), 1.0)])
    np.testing.assert_allclose(guidance.guided(outputs, scale), np.full((2, 4), expected))


def test_without_a_scale_outputs_are_as_they_are():
    outputs = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(guidance.guided(outputs, None), outputs)


def test_labels_are_dropped_where_the_draw_is_below_the_rate():
    labels, uniform = jnp.array([3, 1, 2]), jnp.array([0.05, 0.1, 0.9])
    np.testing.assert_array_equal(guidance.drop_labels(labels, uniform, 0.1, 4), [4, 1, 2])


@pytest.mark.parametrize("guided, expected", [(True, [3, 1, 4, 4]), (False, [3, 1])])
def test_rows_of_branches_are_of_their_classes(guided, expected):
    classes, rows = guidance.branches(jnp.array([3, 1]), 4, guided)
    np.testing.assert_array_equal(classes[rows], expected)
    chex.assert_shape(classes, (2 + guided,))  # "no class" once
    chex.assert_shape(guidance.both(jnp.zeros((2, 5)), guided), (2 * (1 + guided), 5))


@pytest.mark.parametrize(
    "schedule, expected", [("linear", [1.0, 1.5, 2.5, 3.0]), ("constant", [3.0] * 4)]
)
def test_schedules(schedule, expected):
    """Of a scale of 3, after 0, 1, 3 and all 4."""
    found = guidance.SCHEDULES[schedule](3.0, jnp.array([0, 1, 3, 4]), 4)
    np.testing.assert_allclose(found, expected)
