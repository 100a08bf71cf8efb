"""Tests of bar_jax/config/fields.py: what is declared holds together."""

from bar_jax.config import FIELDS, default_config, flatten


def test_the_config_has_what_is_declared():
    assert dict(flatten(default_config())) == {n: field.default for n, field in FIELDS.items()}


def test_defaults_are_in_their_ranges():
    for name, field in FIELDS.items():
        field.check(name, field.default)


def test_every_field_says_what_it_means():
    """In words, or through its choices; the elements of every tuple have a type."""
    unsaid = [name for name, field in FIELDS.items() if not (field.meaning or field.choices)]
    untyped = [name for name, field in FIELDS.items() if (field.type is tuple) != bool(field.of)]
    assert (unsaid, untyped) == ([], [])


def test_two_configs_share_nothing():
    changed = default_config()
    changed.model.generator.order.anneal_end_epochs = 1.0
    assert default_config().model.generator.order.anneal_end_epochs == 300.0
