"""Tests of bar_jax/tokenizers/bit_budget.py."""

import pytest

from bar_jax.tokenizers import bit_budget


@pytest.mark.parametrize(
    "bits, budget",
    [(64, 16384), (256, 65536)],  # masked-bit paper, section 3.3: 256 tokens
)
def test_budgets_of_the_paper(bits, budget):
    assert bit_budget.discrete((16, 16), 2**bits) == budget


@pytest.mark.parametrize("size, bits", [(2, 1), (3, 2), (1000, 10), (1024, 10), (1025, 11)])
def test_a_code_takes_whole_bits(size, bits):
    assert bit_budget.discrete((2, 3), size) == 6 * bits


def test_a_channel_takes_16_bits():
    assert bit_budget.continuous((2, 3), 5) == 6 * 80


def test_continuous_tokenizers_have_the_budget_of_256_bits_a_token():
    """ "At a budget of 65536 bits" BAR-FSQ is compared with SD-VAE (section 3.3)."""
    named = bit_budget.of_named_tokenizers(256)
    assert named == {"LlamaGen-VQ": 3584, "MAR-VAE": 65536, "SD-VAE": 65536}


def test_budgets_grow_with_the_image():
    small, large = map(bit_budget.of_named_tokenizers, (256, 512))
    assert large == {name: 4 * budget for name, budget in small.items()}
