import numpy as np
import pytest

from bar_jax.data import stream


def test_hash_is_splitmix64():
    # the first outputs of the published generator from state 0
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert stream._hash(np.arange(3)).tolist() == expected


def test_positions_of_a_step():
    # step 2 of batches of 8: positions 16..23
    assert stream.positions(2, 8).tolist() == list(range(16, 24))
    assert stream.positions(2, 8, np.array([2, 3, 6])).tolist() == [18, 19, 22]


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_every_epoch_is_a_permutation(epoch):
    indices = stream.examples_at(np.arange(epoch * 101, (epoch + 1) * 101), seed=3, size=101)
    assert sorted(indices) == list(range(101))


def test_epochs_differ_in_order():
    first, second = stream.examples_at(np.arange(202), seed=3, size=101).reshape(2, 101)
    assert (first == second).sum() < 10


def test_seeds_differ_in_order():
    one, other = (stream.examples_at(np.arange(101), seed=seed, size=101) for seed in (0, 1))
    assert (one == other).sum() < 10


def test_a_batch_may_span_epochs():
    whole = stream.examples_at(np.arange(30), seed=0, size=10)
    parts = [stream.examples_at(np.arange(k, k + 6), seed=0, size=10) for k in range(0, 30, 6)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_uniforms_fill_the_unit_interval_evenly():
    draws = stream.uniforms(np.arange(100_000), seed=0, name="mirror")
    counts, _ = np.histogram(draws, bins=10, range=(0.0, 1.0))
    assert counts.sum() == 100_000
    assert np.abs(counts - 10_000).max() < 500  # five standard deviations


def test_streams_of_another_name_are_independent():
    places = np.arange(100_000)
    top, left = (stream.uniforms(places, seed=0, name=name) for name in ("top", "left"))
    assert abs(np.corrcoef(top, left)[0, 1]) < 0.02


def test_prefetch_keeps_the_order_and_ends():
    read = list(stream.prefetch(lambda step: {"step": step}, 3, 40))
    assert [batch["step"] for batch in read] == list(range(3, 40))


def test_prefetch_of_nothing():
    assert list(stream.prefetch(lambda step: {"step": step}, 4, 4)) == []
