"""What stage 1 trains: a tokenizer and, if the loss has one, its discriminator."""

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bar_jax import data
from bar_jax.bases import LEARNED, MATRIX, objectives
from bar_jax.config import duration
from bar_jax.losses import discriminator as disc
from bar_jax.losses import prefixes, weighted
from bar_jax.losses.gram import gram
from bar_jax.losses.perceptual import convnext_distance, lpips, vgg_pair
from bar_jax.losses.reconstruction import absolute_error, squared_error
from bar_jax.pretrained.frozen import Modules, Networks, published_modules
from bar_jax.runtime.errors import InputError
from bar_jax.tokenizers import basis_inside, kind_of, make_tokenizer
from bar_jax.tokenizers.basis_fsq import BasisFSQ, BasisReconstruction
from bar_jax.training import basis as basis_lib
from bar_jax.training import gan, optimizer, restore, step
from bar_jax.training.basis import BasisTraining
from bar_jax.training.gan import Gan, NetworkLoss
from bar_jax.training.optimizer import Durations, warn_of_warmup
from bar_jax.training.step import Path, Program, UpdateRule, stream_key

STAGE = "train_tokenizer"


def make_program(
    config: ConfigDict,
    networks: Networks,
    durations: Durations,
    images: int,
    *,
    modules: Modules | None = None,
    basis: BasisTraining | None = None,
) -> Program:
    """The training of a tokenizer, against its discriminator if the loss has one.

    Args:
      networks: parameters of the frozen networks, from `frozen.load`.
      images: of an epoch.
      modules: of the losses; None for those of the published sizes.
      basis: how one in the tokenizer is trained, and parameters to start from; None for a program
        whose start does not matter.
    """
    section = config.train_tokenizer
    tokenizer = make_tokenizer(config, remat=section.remat)
    modules = modules or published_modules(tokenizer.dtype)
    basis = basis or basis_training(config, None, tokenizer)
    crop_key = stream_key(config.seed, f"{STAGE}/crop")
    loss_fn = make_loss_fn(tokenizer, modules, section, crop_key, config.model.basis.regularizer)
    init = functools.partial(restore.init_tokenizer, tokenizer)
    rule = update_rule(config, durations, basis)
    if section.loss.gan:
        adversary = make_gan(
            tokenizer, modules.discriminator, section, crop_key, durations.steps, images
        )
        program = gan.make_program(init, loss_fn, rule, adversary, networks)
    else:
        program = step.make_program(init, loss_fn, rule, networks)
    pretrained = pretrained_params(config, networks) | basis.pretrained
    return program._replace(pretrained=pretrained, fixed=basis.fixed)


def basis_training(
    config: ConfigDict,
    mesh: jax.sharding.Mesh | None,
    tokenizer: nn.Module,
    second_moment: np.ndarray | None = None,
) -> BasisTraining:
    """How a basis in the tokenizer, if it has one, is trained; as `training.basis.training`."""
    if not inside(tokenizer):
        return BasisTraining()
    found = basis_lib.training(config, mesh, tokenizer, second_moment)
    if tokenizer.basis.needs_tokens and second_moment is None:
        found = found._replace(fixed={})  # it comes with the parameters that training starts from
    return found


def inside(tokenizer: nn.Module) -> bool:
    """Whether a tokenizer has a basis."""
    return isinstance(tokenizer, BasisFSQ)


def update_rule(config: ConfigDict, durations: Durations, basis: BasisTraining) -> UpdateRule:
    """How the tokenizer's parameters are updated: which of them, and at what learning rates."""
    section, kind = config.train_tokenizer, config.model.tokenizer.encoder.kind
    group_of = lambda path: kind_of(config).group([key.key for key in path])

    def trained(path: Path) -> bool:
        group = group_of(path)
        if not basis.trained(path):
            return False
        if section.stage == "decoder_finetune":
            return group == "decoder"
        return group != "embeddings" or kind == "vit"

    shares = dict.fromkeys(("embeddings", "encoder"), section.encoder_learning_rate)
    if basis_inside(config):
        shares["basis"] = section.basis_learning_rate
    scaled = [optimizer.scaled(lambda path: shares.get(group_of(path), 1.0))]
    after = *(scaled if set(shares.values()) != {1.0} else ()), *basis.after
    tx, schedule = optimizer.from_section(section.optimizer, durations, *after)
    return UpdateRule(tx, schedule, section.ema_decay, section.accumulate, trained)


def make_loss_fn(
    tokenizer: nn.Module,
    modules: Modules,
    section: ConfigDict,
    crop_key: jax.Array,
    regularizer: float = 0.0,
) -> NetworkLoss:
    """What the tokenizer minimises: terms whose weight is not 0 (masked-bit paper, Table 6).

    Args:
      crop_key: of the crops that the discriminator is shown.
      regularizer: weight of the regulariser of a basis that is learned.
    """
    weights, size = section.loss.to_dict() | {"regularizer": regularizer}, section.network_size

    def loss_fn(params, batch, keys, networks, adversary=None):
        images = data.to_float(batch["image"])
        output = tokenizer.apply({"params": params}, images)
        decoded = output.images
        terms = {"l1": absolute_error(images, decoded), "l2": squared_error(images, decoded)}
        if inside(tokenizer):
            terms |= basis_terms(tokenizer, params, images, output, keys.examples, weights)
        if weights["convnext"]:
            features = modules.convnext, networks.convnext_s
            terms["convnext"] = convnext_distance(*features, images, decoded, size)
        pairs = {}  # the two images' features by size: LPIPS and Gram share them if theirs is one
        for term, side in (("lpips", images.shape[1]), ("gram", size)):
            if not weights[term]:
                continue
            if side not in pairs:
                pairs[side] = vgg_pair(modules.vgg16, networks.vgg16, images, decoded, side)
            if term == "lpips":
                terms[term] = lpips(networks.lpips, *pairs[side])
            else:
                terms[term] = gram(*pairs[side])
        if weights["alignment"]:
            frozen_encoder = {"params": networks.siglip2}
            target = tokenizer.apply(frozen_encoder, images, method=tokenizer.features)
            terms["alignment"] = squared_error(target, output.predicted_features)
        if adversary is not None:
            crop = disc.draw_crop(jax.random.fold_in(crop_key, keys.step), images.shape[1:3], size)
            shown = disc.prepare(decoded, crop, size)
            logits = disc.logits(modules.discriminator, *adversary, networks.dino_s8, shown)
            terms["gan"] = disc.generator_loss(logits)
        return weighted(terms, weights)

    return loss_fn


def basis_terms(
    tokenizer: BasisFSQ,
    params: dict,
    images: jax.Array,
    output: BasisReconstruction,
    keys: jax.Array,
    weights: Mapping[str, float],
) -> dict[str, jax.Array]:
    """Terms of the loss that a basis adds, [B] each.

    `residual`; `prefix`: `l1` and `l2`, with their weights, of images that are decoded from random
    prefixes; and, while A is learned, `regularizer`.
    """
    A, terms = params[MATRIX], {}
    if weights["residual"]:
        terms["residual"] = prefixes.residual(output.z, output.coefficients, A)
    if weights["prefix"]:
        lengths = prefixes.draw_lengths(keys, tokenizer.length)
        arguments = ({"params": params}, output.codes, lengths)
        early = tokenizer.apply(*arguments, method=tokenizer.from_prefix)
        terms["prefix"] = weights["l1"] * absolute_error(images, early)
        terms["prefix"] += weights["l2"] * squared_error(images, early)
    if tokenizer.basis.kind == LEARNED:
        terms["regularizer"] = jnp.broadcast_to(objectives.regularizer(A), images.shape[:1])
    return terms


def make_gan(
    tokenizer: nn.Module,
    net: disc.Discriminator,
    section: ConfigDict,
    crop_key: jax.Array,
    steps: int,
    images: int,
) -> Gan:
    """The discriminator of a run of so many steps.

    Args:
      images: of an epoch.
    """
    size = section.network_size

    def init(key):
        params_key, vectors_key = jax.random.split(key)
        params = net.init(params_key, jnp.zeros((1, size, size, 3)))["params"]["heads"]
        return params, disc.init_vectors(vectors_key, nn.unbox(params))

    def loss_fn(params, batch, keys, networks, network, vectors):
        images = data.to_float(batch["image"])
        decoded = tokenizer.apply({"params": network}, images).images
        key, logits = jax.random.fold_in(crop_key, keys.step), []
        for i, shown in enumerate((images, disc.as_stored(decoded))):
            crop = disc.draw_crop(jax.random.fold_in(key, i), images.shape[1:3], size)
            shown = disc.prepare(shown, crop, size)
            logits.append(disc.logits(net, params, vectors[i], networks.dino_s8, shown))
        real, fake = logits
        terms = {
            "hinge": disc.hinge(real, fake),
            "logits_real": real.mean(axis=-1),
            "logits_fake": fake.mean(axis=-1),
        }
        return weighted(terms, {"hinge": 1.0, "logits_real": 0.0, "logits_fake": 0.0})

    start, warmup = _discriminator_steps(section, images)
    durations = Durations(steps - start, warmup)
    tx, schedule = optimizer.from_section(section.discriminator.optimizer, durations)
    rule = UpdateRule(tx, schedule, accumulate=section.accumulate)
    return Gan(init, disc.power_iteration, loss_fn, rule, start)


def check_discriminator(section: ConfigDict, images: int, steps: int) -> None:
    """Checks, of a loss with a discriminator, that this comes into play in a run of so many steps.

    Raises:
      InputError: it would start after the last step.
    """
    if not section.loss.gan:
        return
    start, warmup = _discriminator_steps(section, images)
    if start >= steps:
        raise InputError(
            f"{STAGE}.discriminator.start_steps",
            f"{start} of {steps} steps",
            f"an earlier start, or {STAGE}.loss.gan=0",
        )
    optimizer = section.discriminator.optimizer
    # Its schedule goes on at every second step, which is when it is updated.
    updates = (steps - start) // 2
    warn_of_warmup(f"{STAGE}.discriminator.optimizer", optimizer.learning_rate, warmup, updates)


def _discriminator_steps(section: ConfigDict, images: int) -> tuple[int, int]:
    """The step at which it starts, and the steps of its warm-up."""
    part, field = section.discriminator, f"{STAGE}.discriminator."
    return tuple(
        duration(own, f"{field}{name}", section.batch_size, images, required=False)
        for own, name in ((part, "start_"), (part.optimizer, "optimizer.warmup_"))
    )


def pretrained_params(config: ConfigDict, networks: Networks) -> dict:
    """What an encoder from SigLIP2 starts with; {} if it starts from scratch."""
    return {} if config.model.tokenizer.encoder.kind == "vit" else networks.siglip2 or {}


def with_discriminator_at_once(config: ConfigDict) -> ConfigDict:
    """The config with its discriminator, if it has one, from the first step on."""
    config = config.copy_and_resolve_references()
    start = dict(start_steps=0, start_epochs=0.0, start_images=0)
    config.train_tokenizer.discriminator.update(start)
    return config
