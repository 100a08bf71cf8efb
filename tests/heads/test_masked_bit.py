"""Tests of bar_jax/heads/masked_bit.py."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from bar_jax.config.validation import CHOICES
from bar_jax.heads.logits import gumbel
from bar_jax.heads.masked_bit import HIDDEN, MaskedBitHead, Masking, hide, unmask
from bar_jax.nn.decoding import decoding_params

BITS, WIDTH = 8, 12


def write(logits, shape, schedule, *, temperature=0.0, uniform=None):
    """Unmasks tokens [B, n] with the given logits."""
    noise = jnp.zeros((shape[0], len(schedule), shape[1], 3))
    noise = noise if uniform is None else gumbel(uniform)
    return jax.jit(lambda noise: unmask(logits, shape, temperature, schedule, noise))(noise)


def fixed(z):
    """Logits (0, z), whatever is hidden."""
    return lambda symbols, t: jnp.stack([jnp.zeros_like(z), jnp.asarray(z)], axis=-1)


def told(z):
    """Logits that say what is hidden: (-1, z), z + 100 where hidden."""
    return lambda symbols, t: jnp.stack(
        [jnp.full(symbols.shape, -1.0), z + 100.0 * (symbols == HIDDEN)], axis=-1
    )


@pytest.fixture(scope="module")
def head():
    return MaskedBitHead(BITS, WIDTH, depth=2)


@pytest.fixture(scope="module")
def params(head):
    """Random parameters: as initialised, no block does anything."""
    tokens = (jnp.zeros((1, BITS), jnp.int32), jnp.zeros((1, WIDTH)), jnp.zeros(1))
    shapes = meta.unbox(jax.eval_shape(head.init, jax.random.key(0), *tokens))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) / 2, jnp.float32), shapes)


@pytest.fixture(scope="module")
def logits(head, params):
    return jax.jit(functools.partial(head.apply, params))


# Hiding


@pytest.mark.parametrize(
    "ratio, count",
    [(0.0, 1), (0.05, 1), (0.1875, 2), (0.3125, 2), (0.4375, 4), (0.5, 4), (1.0, 8), (1.5, 8)],
)
def test_hides_the_share_rounded_half_to_even_and_at_least_one(key, ratio, count):
    """0.3125 * 8 = 2.5 -> 2, 0.4375 * 8 = 3.5 -> 4."""
    uniform = jax.random.uniform(key, (5, BITS))
    bits = np.tile([0, 1], (5, BITS // 2))
    symbols, hidden, told = hide(bits, jnp.full(5, ratio), uniform)
    np.testing.assert_array_equal(hidden.sum(-1), np.full(5, count))
    np.testing.assert_array_equal(symbols, np.where(hidden, 2, bits))
    np.testing.assert_allclose(told, np.full(5, min(max(ratio, 1 / 8), 1.0)))  # not rounded


def test_every_bit_is_hidden_equally_often(key):
    uniform = jax.random.uniform(key, (4000, BITS))
    _, hidden, _ = jax.jit(hide)(jnp.zeros((4000, BITS), jnp.uint8), jnp.full(4000, 0.25), uniform)
    np.testing.assert_allclose(
        np.mean(hidden, axis=0), np.full(BITS, 0.25), atol=4 * math.sqrt(0.25 * 0.75 / 4000)
    )


def normal_cdf(x):
    return 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


CDFS = {
    # 1 - sigmoid(0.8 z) <= x where z >= logit(1 - x) / 0.8
    "logit_normal": lambda x: normal_cdf(np.log(x / (1 - x)) / 0.8),
    "uniform": lambda x: x,
    # (2 / pi) arccos(u) <= x where u >= cos(pi x / 2)
    "arccos": lambda x: 1 - np.cos(np.pi * x / 2),
}


@pytest.mark.parametrize("mask_ratio", CHOICES["model.head.mask_ratio"])
def test_mask_ratio_has_its_distribution(key, mask_ratio):
    """Kolmogorov-Smirnov at the 1 % level, on a fixed key."""
    count = 4000
    head = MaskedBitHead(BITS, WIDTH, 1, mask_ratio)
    uniform = jax.random.uniform(key, (count, head.uniforms_per_token))
    masking = jax.jit(head.draws)(uniform)
    assert masking.uniform.shape == (count, BITS)
    cdf = CDFS[mask_ratio](np.sort(np.asarray(masking.ratio, np.float64)))
    steps = np.arange(count + 1) / count
    assert max(np.max(steps[1:] - cdf), np.max(cdf - steps[:-1])) < 1.63 / math.sqrt(count)


@pytest.mark.parametrize("mask_ratio", CHOICES["model.head.mask_ratio"])
def test_mask_ratio_is_finite_at_the_ends_of_the_draws(mask_ratio):
    head = MaskedBitHead(BITS, WIDTH, 1, mask_ratio)
    uniform = jnp.stack([jnp.zeros(1 + BITS), jnp.full(1 + BITS, 1 - 2**-24)])
    ratio = head.draws(uniform).ratio
    assert np.all((ratio >= 0) & (ratio <= 1))


# Loss


@pytest.mark.parametrize("padded", [False, True])
def test_loss_is_that_of_a_loop_over_bits(head, params, logits, padded):
    """Weight 1 on hidden bits, 0.1 on visible ones; tokens that do not count add nothing."""
    rng = np.random.default_rng(2)
    z = rng.normal(size=(6, WIDTH)).astype(np.float32)
    bits = rng.integers(0, 2, (6, BITS))
    masking = Masking(ratio=rng.uniform(size=6), uniform=rng.uniform(size=(6, BITS)))
    masking = jax.tree.map(lambda x: x.astype(np.float32), masking)
    counted = np.array([1, 0, 1, 1, 0, 1], bool) if padded else None
    run = jax.jit(lambda *args: head.apply(params, *args, method=head.loss))
    sums = run(z, bits, masking, counted)

    symbols, _, ratio = hide(bits, masking.ratio, masking.uniform)
    out = np.asarray(logits(symbols, z, ratio), np.float64)
    total = weight = hidden_total = right = hidden = 0.0
    for m, i in np.ndindex(6, BITS):
        if padded and not counted[m]:
            continue
        entropy = np.logaddexp(*out[m, i]) - out[m, i, bits[m, i]]
        is_hidden = int(symbols[m, i]) == HIDDEN
        total += entropy * (1.0 if is_hidden else 0.1)
        weight += 1.0 if is_hidden else 0.1
        hidden += is_hidden
        hidden_total += is_hidden * entropy / math.log(2)
        right += is_hidden * (np.argmax(out[m, i]) == bits[m, i])
    expected = {
        "loss": (total, weight),
        "bits_per_bit": (hidden_total, hidden),
        "bit_accuracy": (right, hidden),
    }
    assert sums.keys() == expected.keys()
    for name, pair in expected.items():
        np.testing.assert_allclose(sums[name], pair, rtol=1e-5, err_msg=name)


def test_remat_gives_the_same_numbers(head, params):
    rng = np.random.default_rng(4)
    z, bits = rng.normal(size=(3, WIDTH)).astype(np.float32), rng.integers(0, 2, (3, BITS))
    draws = Masking(ratio=jnp.full(3, 0.5), uniform=jnp.asarray(rng.uniform(size=(3, BITS))))
    loss = lambda module: jax.jit(  # noqa: E731
        jax.value_and_grad(lambda p: module.apply(p, z, bits, draws, method=module.loss)["loss"][0])
    )(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        loss(head.clone(remat=True)),
        loss(head),
    )


def test_hidden_bits_do_not_reach_the_logits(head, params):
    """What the head is asked for must not be told to it."""
    masking = Masking(ratio=np.ones(1, np.float32), uniform=np.zeros((1, BITS), np.float32))
    z = np.ones((1, WIDTH), np.float32)
    run = jax.jit(lambda bits: head.apply(params, z, bits, masking, method=head.loss)["loss"])
    bits = np.zeros((1, BITS), int)
    # With everything hidden, entropies of a bit and of its opposite are of one distribution.
    out = jax.jit(lambda: head.apply(params, np.full((1, BITS), HIDDEN), z, np.ones(1)))()[0]
    expected = [np.sum(np.logaddexp(out[:, 0], out[:, 1]) - out[:, i]) for i in (0, 1)]
    np.testing.assert_allclose([run(bits)[0], run(1 - bits)[0]], expected, rtol=1e-5)


# Sampling


@pytest.mark.parametrize("schedule", [(8,), (2, 2, 4), (1, 2, 2, 3), (1,) * 8])
def test_schedule_shows_the_surest_bits_first(schedule):
    """After step t exactly b_1 + ... + b_t bits are shown, those with the largest logits."""
    z = np.random.default_rng(0).permuted(np.tile(np.arange(1.0, 9.0), (3, 1)), axis=1)
    bits, logits = write(told(z), z.shape, schedule)
    shown_before = np.cumsum((0, *schedule[:-1]))
    hidden = logits[..., 1] > 50
    for t, shown in enumerate(shown_before):
        np.testing.assert_array_equal(hidden[t], z <= BITS - shown)
    assert bits.dtype == jnp.uint8
    np.testing.assert_array_equal(bits, np.ones_like(z))


def test_confidence_is_the_logit_of_the_drawn_symbol():
    """A bit is sure where |z| is large when 0 was drawn at logit -1: -1 beats -9 but not 1."""
    z = np.array([[-9.0, 1.0, -8.0, 2.0]])
    _, logits = write(told(z - 100), z.shape, (2, 2))  # 100 are added where hidden
    # Own logits at step 0: -1 for drawn zeros, z for ones: bits 1 and 3 are surer.
    np.testing.assert_array_equal(logits[1, 0, :, 1] > -50, [True, False, True, False])


def test_ties_at_the_cut_stay_hidden():
    _, logits = write(told(np.ones((1, 4))), (1, 4), (1, 1, 2))
    np.testing.assert_array_equal(logits[..., 1] > 50, np.ones((3, 1, 4)))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_first_step_samples_at_the_temperature(key, temperature):
    """P(1) = sigmoid(z / tau)."""
    z = np.array([-2.0, -0.5, 0.0, 1.0])
    count = 4000
    uniform = jax.random.uniform(key, (count, 1, 4, 3))
    bits, _ = write(
        fixed(np.tile(z, (count, 1))), (count, 4), (4,), temperature=temperature, uniform=uniform
    )
    expected = 1 / (1 + np.exp(-z / temperature))
    np.testing.assert_allclose(bits.mean(0), expected, atol=4 * 0.5 / math.sqrt(count))


def test_last_step_of_T_samples_at_a_Tth_of_the_temperature(key):
    """Bits 0..3 are shown first (their logits are far above); bit 4 is drawn at tau / 2."""
    z, count = np.array([50.0, 50.0, 50.0, 50.0, 0.5]), 4000
    uniform = jax.random.uniform(key, (count, 2, 5, 3))
    bits, _ = write(
        fixed(np.tile(z, (count, 1))), (count, 5), (4, 1), temperature=1.0, uniform=uniform
    )
    expected = 1 / (1 + math.exp(-0.5 / 0.5))
    assert bits[:, 4].mean() == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(count))


@functools.cache
def sampler(head, schedule, guidance):
    """(params, z, uniform) -> bits and logits at temperature 1."""
    return jax.jit(
        lambda params, z, uniform: head.apply(
            {"params": decoding_params(params["params"], jnp.float32)},
            *(z, guidance, 1.0, schedule, uniform),
            method=head.sample,
        )
    )


@pytest.mark.parametrize("guidance", [None, 3.0])
def test_every_step_draws_from_the_heads_logits(key, head, params, logits, guidance):
    """Replays the steps by hand: the same draws, through the head in its training layout."""
    batch, schedule = 5, (2, 2, 4)
    rows = batch if guidance is None else 2 * batch
    z = np.random.default_rng(3).normal(size=(rows, WIDTH)).astype(np.float32)
    uniform = jax.random.uniform(key, (batch, len(schedule), BITS, 3))
    bits, told_logits = sampler(head, schedule, guidance)(params, z, uniform)

    def by_hand(symbols, t):
        share = (BITS - sum(schedule[:t])) / BITS
        out = logits(np.tile(symbols, (rows // batch, 1)), z, jnp.full(rows, share))
        # Conditional logits come first.
        return out if guidance is None else out[batch:] + guidance * (out[:batch] - out[batch:])

    expected = unmask(by_hand, (batch, BITS), 1.0, schedule, gumbel(uniform))
    np.testing.assert_array_equal(bits, expected[0])
    np.testing.assert_allclose(told_logits, expected[1], rtol=1e-4, atol=1e-4)


def test_schedule_must_sum_to_the_bits(head, params):
    uniform = jnp.zeros((1, 2, BITS, 3))
    with pytest.raises(
        ValueError, match=r"schedule: found \(2, 2\), expected .* that sum to 8 bits"
    ):
        sampler(head, (2, 2), None)(params, jnp.zeros((1, WIDTH)), uniform)
