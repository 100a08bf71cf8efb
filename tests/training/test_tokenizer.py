"""Tests of bar_jax/training/tokenizer.py: the program, at tiny sizes of every network."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import meta

from bar_jax.config import default_config
from bar_jax.config.presets import tiny
from bar_jax.losses.discriminator import DINO, Discriminator
from bar_jax.losses.perceptual import LinearHeads
from bar_jax.nn.convnext import ConvNeXt
from bar_jax.nn.vgg import VGG16
from bar_jax.pretrained import frozen, siglip2
from bar_jax.runtime.errors import InputError
from bar_jax.tokenizers import make_tokenizer
from bar_jax.tokenizers.bar_fsq import parameter_group
from bar_jax.training import restore
from bar_jax.training import tokenizer as tokenizer_lib
from bar_jax.training.gan import Adversary, Vectors
from bar_jax.training.optimizer import Durations
from bar_jax.training.step import Keys, jit_once
from bar_jax.training.tokenizer import make_loss_fn, make_program, with_discriminator_at_once

CHANNELS = (2, 3, 4, 5, 6)
VIT = dict(width=8, depth=3, heads=2, mlp_width=16, patch_size=8, stored_size=16, keep=(-1, 1))
MODULES = frozen.Modules(
    VGG16(CHANNELS), ConvNeXt((2, 3, 4, 5), (1, 1, 1, 1), 7), Discriminator(**VIT, kernel_size=3)
)
NOTHING = frozen.Networks()
STEPS, START = 6, 2
DURATIONS = Durations(STEPS, warmup=1)
WEIGHTS = dict(l1=0.1, l2=1.0, lpips=1.0, convnext=0.1, gram=10.0, alignment=0.7, gan=0.05)


def config(**changes):
    """All terms of the loss, with a discriminator from the third step on."""
    config = tiny(default_config())
    config.data.image_size = 32
    config.model.tokenizer.update(dict(bits=4, patch_size=8))
    config.model.tokenizer.encoder.update(dict(kind="siglip2", position_grid=3))
    config.model.tokenizer.decoder.update(dict(predictor_layer=0, predictor_width=8))
    train = config.train_tokenizer
    train.loss.update(WEIGHTS)
    train.optimizer.learning_rate = 1e-2
    train.update(dict(batch_size=4, network_size=32, ema_decay=0.9, encoder_learning_rate=0.1))
    train.discriminator.update(dict(start_steps=START, start_epochs=0.0))
    train.discriminator.optimizer.update(dict(warmup_steps=1, warmup_epochs=0.0))
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    return config


@functools.cache
def networks():
    """Random parameters of the frozen networks."""
    key, images = jax.random.key(1), jnp.zeros((1, 32, 32, 3))
    features = [jnp.zeros((1, 1, 1, c)) for c in CHANNELS]
    dino = DINO(**VIT)

    @jax.jit  # one program instead of one for each operation
    def init():
        return {
            "vgg16": MODULES.vgg16.init(key, images),
            "lpips": LinearHeads(CHANNELS).init(key, features, features),
            "convnext_s": MODULES.convnext.init(key, images),
            "dino_s8": dino.init(key, images),
        }, restore.init_tokenizer(make_tokenizer(config()), jax.random.key(2))

    params, own = meta.unbox(init())
    params = {name: tree["params"] for name, tree in params.items()}
    # With scales that make the features differ from place to place.
    params["siglip2"] = jax.tree.map(
        lambda x: x + 0.3 * np.random.default_rng(0).normal(size=x.shape).astype(np.float32),
        jax.device_get({part: own[part] for part in siglip2.ENCODER}),
    )
    return frozen.Networks(**params)


def batches():
    rng = np.random.default_rng(0)
    return [{"image": rng.integers(0, 256, (4, 32, 32, 3), np.uint8)} for _ in range(STEPS)]


@functools.cache
def trained(**changes):
    """States before and after each step, and what was logged."""
    chosen = config(**changes)
    program = make_program(chosen, networks(), DURATIONS, 100, modules=MODULES)
    state, logged = meta.unbox(jit_once(program.init)(jax.random.key(0))), []
    # As the loop starts: pretrained parameters in the places of fresh ones.
    params = state.params | {
        part: state.params[part] | tree for part, tree in program.pretrained.items()
    }
    states = [state.replace(params=params, ema=params)]
    jitted = functools.cache(jax.jit)
    for i, batch in enumerate(batches()):
        step = jitted(program.step(i))
        state, metrics = step(states[-1], batch, jax.random.key(3), program.frozen)
        states.append(state)
        logged.append({name: float(value) for name, value in metrics.items()})
    return jax.device_get(states), logged


# Which parameters move, and when, does not depend on the terms: those of pixels compile fast.
PIXELS = {f"train_tokenizer__loss__{name}": 0.0 for name in WEIGHTS if len(name) > 2}
WITH_GAN = PIXELS | {"train_tokenizer__loss__gan": WEIGHTS["gan"]}


def changed(before, after):
    """Groups of which a parameter differs."""
    groups = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(before):
        keys = [key.key for key in path]
        other = functools.reduce(lambda tree, key: tree[key], keys, after)
        if not np.array_equal(leaf, other):
            groups.add(parameter_group(keys))
    return groups


@pytest.mark.slow
def test_the_loss_is_the_weighted_sum_of_its_terms():
    """Without a discriminator there is no term of it."""
    section, key = config().train_tokenizer, jax.random.key(0)
    tokenizer, net = make_tokenizer(config()), MODULES.discriminator
    loss_fn = make_loss_fn(tokenizer, MODULES, section, key)
    gan = tokenizer_lib.make_gan(tokenizer, net, section, key, STEPS, 100)

    @jax.jit
    def losses(frozen):
        params = meta.unbox(restore.init_tokenizer(tokenizer, key))
        given = params, batches()[0], Keys(None, None, 0), frozen
        return loss_fn(*given), loss_fn(*given, Adversary(*meta.unbox(gan.init(key))))

    for sums, terms in zip(losses(networks()), (WEIGHTS.keys() - {"gan"}, WEIGHTS), strict=True):
        found = {name: float(total / count) for name, (total, count) in sums.items()}
        assert found.keys() - {"loss"} == set(terms)
        total = sum(WEIGHTS[name] * found[name] for name in terms)
        assert found["loss"] == pytest.approx(total, rel=1e-5)
        assert all(found[name] != 0 for name in terms)


@pytest.mark.slow
def test_the_discriminators_steps():
    """They alone log its numbers, and only the tokenizer's steps have a loss."""
    _, logged = trained(**WITH_GAN)
    assert [i for i, numbers in enumerate(logged) if "discriminator_loss" in numbers] == [3, 5]
    assert [i for i, numbers in enumerate(logged) if "loss" in numbers] == [0, 1, 2, 4]
    assert all(np.isfinite(logged[i]["discriminator_loss"]) for i in (3, 5))


@pytest.mark.slow
def test_each_network_changes_its_own_parameters():
    """Embeddings that come from SigLIP2 stay; its encoder, the quantizer and the decoder move."""
    states, _ = trained(**WITH_GAN)
    for i in range(STEPS):
        before, after = states[i], states[i + 1]
        is_tokenizers = i < START or i % 2 == 0
        first_rate_is_zero = i in (0, 3)  # warm-up starts at 0
        moved = set() if first_rate_is_zero or not is_tokenizers else {"encoder", "quantizer"}
        assert changed(before.params, after.params) == moved | ({"decoder"} if moved else set())
        heads = [jax.tree.leaves(s.discriminator.params) for s in (before, after)]
        same = all(map(np.array_equal, *heads))
        assert same == (is_tokenizers or first_rate_is_zero)
        # One power iteration in the network's steps against it, two in its own; before, none.
        vectors = [jax.tree.leaves(s.discriminator.vectors) for s in (before, after)]
        assert all(map(np.array_equal, *vectors)) == (i < START)


@pytest.mark.slow
def test_the_encoder_learns_at_a_tenth_of_the_rate():
    """Adam's second step is about the learning rate in size, whatever the gradient."""
    states, logged = trained(**WITH_GAN)
    rate = logged[1]["learning_rate"]
    shares = {"encoder": 0.1, "quantizer": 1.0, "decoder": 1.0}
    largest = dict.fromkeys(shares, 0.0)
    flat = lambda state: jax.tree_util.tree_leaves_with_path(state.params)
    for (path, before), (_, after) in zip(flat(states[1]), flat(states[2]), strict=True):
        group = parameter_group([key.key for key in path])
        if group in largest:
            largest[group] = max(largest[group], np.max(np.abs(after - before)))
    for group, share in shares.items():
        assert 0.5 * share * rate < largest[group] < 1.5 * share * rate, group


@pytest.mark.slow
def test_an_encoder_from_scratch_trains_its_embeddings():
    states, _ = trained(**PIXELS, model__tokenizer__encoder__kind="vit")
    expected = {"embeddings", "encoder", "quantizer", "decoder"}
    assert changed(states[0].params, states[-1].params) == expected


@pytest.mark.slow
def test_decoder_finetuning_moves_the_decoder_alone():
    """And its moving average; the optimiser keeps moments of nothing else."""
    states, _ = trained(**PIXELS, train_tokenizer__stage="decoder_finetune")
    assert changed(states[0].params, states[-1].params) == {"decoder"}
    assert changed(states[0].ema, states[-1].ema) == {"decoder"}
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree) if x.dtype == np.float32)  # noqa: E731
    decoder = {n: t for n, t in states[0].params.items() if parameter_group((n,)) == "decoder"}
    assert count(states[0].opt_state) == 2 * count(decoder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "network, tolerance",
    [
        pytest.param("tokenizer", 1e-6, marks=pytest.mark.exhaustive),
        # The same step compiled without optimisation is 8e-6 away: normalised differences round.
        pytest.param("discriminator", 1e-5, marks=pytest.mark.exhaustive),
    ],
)
def test_pieces_of_a_batch_have_the_gradient_of_the_whole(network, tolerance):
    """Where the groups that the discriminator normalises lie within a piece.

    Adam's first moment after one step is a tenth of the clipped gradient.
    """
    modules = MODULES._replace(discriminator=MODULES.discriminator.clone(virtual_batch=2))
    found = {}
    for accumulate in (1, 2):
        terms = WITH_GAN if network == "discriminator" else {}  # of the tokenizer's loss
        chosen = config(train_tokenizer__accumulate=accumulate, **terms)
        chosen = with_discriminator_at_once(chosen)
        program = make_program(chosen, networks(), DURATIONS, 100, modules=modules)
        state = meta.unbox(jit_once(program.init)(jax.random.key(0)))
        number = ("tokenizer", "discriminator").index(network)
        step = jax.jit(program.step(number))
        state, metrics = step(state, batches()[0], jax.random.key(3), program.frozen)
        moved = state.discriminator if number else state
        moments = [s.mu for s in jax.tree.leaves(moved.opt_state, is_leaf=is_adam) if is_adam(s)]
        found[accumulate] = jax.device_get((moments, metrics))
    (expected, numbers), (pieces, others) = found[1], found[2]
    flat = lambda trees: np.concatenate([np.ravel(x) for x in jax.tree.leaves(trees)])
    error = np.linalg.norm(flat(pieces) - flat(expected)) / np.linalg.norm(flat(expected))
    assert error < tolerance
    for name, value in numbers.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-5, err_msg=name)


def is_adam(x) -> bool:
    return isinstance(x, optax.ScaleByAdamState)


class SCALING:
    """A tokenizer whose images, and their features, are the given ones times a parameter."""

    features = "features"

    @staticmethod
    def apply(variables, images, method=None):
        scaled = variables["params"]["scale"] * images
        return scaled if method else SimpleNamespace(images=scaled, predicted_features=scaled)


SCALE = {"scale": jnp.float32(0.9)}
GAN = {f"train_tokenizer__loss__{name}": float(name == "gan") for name in WEIGHTS}


def both_losses():
    """The discriminator's and the tokenizer's, as functions of their parameters and the step."""
    section, key = with_discriminator_at_once(config(**GAN)).train_tokenizer, jax.random.key(0)
    gan = tokenizer_lib.make_gan(SCALING, MODULES.discriminator, section, key, STEPS, 100)
    loss_fn, batch = make_loss_fn(SCALING, MODULES, section, key), batches()[0]

    def of_discriminator(params, step):
        vectors = Vectors("real", "generated")
        return gan.loss_fn(params, batch, Keys(None, None, step), NOTHING, SCALE, vectors)

    def of_tokenizer(params, step):
        adversary = Adversary(None, "generated")
        return loss_fn(params, batch, Keys(None, None, step), NOTHING, adversary)

    return of_discriminator, of_tokenizer


def test_the_alignment_target_is_the_frozen_encoders():
    weights = dict.fromkeys(WEIGHTS, 0.0) | {"alignment": 1.0}
    section = config().train_tokenizer
    section.loss.update(weights)
    loss_fn = make_loss_fn(SCALING, MODULES, section, jax.random.key(0))
    networks = frozen.Networks(siglip2={"scale": 0.5})
    sums = loss_fn(SCALE, batches()[0], Keys(None, None, 0), networks)
    images = batches()[0]["image"] / 127.5 - 1
    total, count = sums["loss"]
    assert total / count == pytest.approx(np.mean((0.4 * images) ** 2), rel=1e-5)


def test_the_discriminator_is_shown_images_as_they_are_stored(monkeypatch):
    """Rounded to 256 levels, and real and reconstructed ones with spectral vectors of their own."""
    shown, vectors = [], []
    monkeypatch.setattr(tokenizer_lib.disc, "prepare", lambda images, *_: images)

    def logits(net, params, own_vectors, backbone, images):
        shown.append(images)
        vectors.append(own_vectors)
        return jnp.zeros((len(images), 1))

    monkeypatch.setattr(tokenizer_lib.disc, "logits", logits)
    both_losses()[0]({}, 0)
    assert vectors == ["real", "generated"]
    levels = 127.5 * (np.asarray(shown[1], np.float64) + 1)
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
    np.testing.assert_allclose(127.5 * (shown[0] + 1), batches()[0]["image"], atol=1e-3)


def test_every_step_crops_anew_and_the_discriminators_twice(monkeypatch):
    """Keys of the crops: of real and of reconstructed images, and of those the tokenizer shows."""
    keys = []
    draw = lambda key, *_: keys.append(tuple(np.asarray(jax.random.key_data(key))))
    monkeypatch.setattr(tokenizer_lib.disc, "draw_crop", draw)
    monkeypatch.setattr(tokenizer_lib.disc, "prepare", lambda images, *_: images)
    monkeypatch.setattr(tokenizer_lib.disc, "logits", lambda *_: jnp.zeros((4, 1)))
    for step in range(2):
        for loss_fn in both_losses():
            loss_fn(SCALE, step)
    assert len(keys) == len(set(keys)) == 6


def test_the_discriminators_opinion_reaches_the_tokenizer(monkeypatch):
    """Of images as they are made: rounded ones have no gradient."""
    monkeypatch.setattr(tokenizer_lib.disc, "logits", lambda *given: given[-1].reshape(4, -1))
    loss = lambda params: both_losses()[1](params, 0)["loss"][0]
    assert jax.grad(loss)(SCALE)["scale"] != 0


def test_the_discriminator_has_an_optimizer_of_its_own():
    section = config().train_tokenizer
    section.discriminator.optimizer.warmup_steps = 3
    section.discriminator.optimizer.learning_rate = 0.3
    arguments = None, MODULES.discriminator, section, jax.random.key(0), STEPS, 100
    gan = tokenizer_lib.make_gan(*arguments)
    assert gan.start == START
    rates = [float(gan.rule.learning_rate(update)) for update in range(4)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


@pytest.mark.slow
def test_a_term_without_weight_is_not_computed():
    """Its network is not even looked up."""
    chosen = config(**PIXELS)
    tokenizer = make_tokenizer(chosen)
    init = functools.partial(restore.init_tokenizer, tokenizer)
    params = meta.unbox(jit_once(init)(jax.random.key(0)))
    loss_fn = make_loss_fn(tokenizer, MODULES, chosen.train_tokenizer, jax.random.key(0))
    sums = loss_fn(params, batches()[0], Keys(None, None, 0), NOTHING)
    assert sums.keys() == {"loss", "l1", "l2"}


def test_a_discriminator_that_would_never_play_is_refused():
    late = config(train_tokenizer__discriminator__start_steps=STEPS).train_tokenizer
    with pytest.raises(InputError, match=r"start_steps: found 6 of 6 steps, expected an earlier"):
        tokenizer_lib.check_discriminator(late, 100, STEPS)
    late.loss.gan = 0.0
    tokenizer_lib.check_discriminator(late, 100, STEPS)


@pytest.mark.parametrize(("warmup", "told"), [(1, False), (2, True)])
def test_a_discriminator_that_never_reaches_its_rate_is_told(caplog, warmup, told):
    """Of the four steps from its start on it makes two, and so two of its schedule."""
    section = config(train_tokenizer__discriminator__optimizer__warmup_steps=warmup).train_tokenizer
    tokenizer_lib.check_discriminator(section, 100, STEPS)
    line = "train_tokenizer.discriminator.optimizer.warmup: 2 steps, in a run of 2; the learning"
    assert [message.startswith(line) for message in caplog.messages] == [True] * told
