"""Stage 1: train the tokenizer on images.

Writes `tokenizer/` (checkpoints), `reconstructions.png`, and into `summary.json` the validation
PSNR and losses, the bits' usage and the bit budget.
"""

import functools
import pathlib
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bar_jax import data
from bar_jax.bases import LEARNED, MATRIX, objectives
from bar_jax.config import duration
from bar_jax.data import classes
from bar_jax.inspection.basis import evaluate_tokenizer
from bar_jax.losses import discriminator as disc
from bar_jax.losses import prefixes, weighted
from bar_jax.losses.gram import gram
from bar_jax.losses.perceptual import convnext_distance, lpips, vgg_pair
from bar_jax.losses.reconstruction import absolute_error, squared_error
from bar_jax.metrics import tokenizer as tokenizer_metrics
from bar_jax.metrics.reconstruction import bit_entropies
from bar_jax.pretrained import frozen
from bar_jax.runtime import workdir
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.job import Job, batches_of
from bar_jax.runtime.mesh import batch_share, first_alone, first_says, make_mesh
from bar_jax.runtime.writer import update_summary
from bar_jax.tokenizers import (
    basis_inside,
    bit_budget,
    kind_of,
    make_tokenizer,
    sequence_grid,
    token_width,
)
from bar_jax.tokenizers.basis_fsq import BasisFSQ, BasisReconstruction
from bar_jax.training import basis as basis_lib
from bar_jax.training import checkpoint, loop
from bar_jax.training import restore as models
from bar_jax.training.optimizer import warn_of_warmup
from bar_jax.training.players import FrozenLossFn, Opponent, Program, two_players
from bar_jax.training.step import everything, stream_key

STAGE = "train_tokenizer"
INIT_STREAM = f"{STAGE}/params"  # of random numbers, that fresh parameters are drawn from


def run(config: ConfigDict) -> dict[str, object]:
    """Trains to the end, or goes on from the last checkpoint; returns the summary."""
    section, mesh = config.train_tokenizer, make_mesh(**config.mesh)
    source = data.open_images(config)
    first_alone(lambda: classes.keep(config, source.class_names))
    folder = workdir.begin_training(config, "tokenizer")
    tokenizer = make_tokenizer(config, remat=section.remat)

    def batches(start):
        return data.train_batches(
            source,
            image_size=config.data.image_size,
            crop=config.data.crop,
            mirror=config.data.mirror,
            batch_size=section.batch_size,
            seed=config.seed,
            start_step=start,
            num_workers=config.data.num_workers,
            rows=batch_share(mesh).rows(section.batch_size),
            on_damaged=config.data.on_damaged,
        )

    def evaluate(state, writer):
        params = state.params if state.ema is None else state.ema
        measured = tokenizer_metrics.measure(
            config, mesh, tokenizer, params, section.batch_size, section.evaluate_images
        )
        picture = tokenizer_metrics.save_picture(config, measured)
        writer.image(int(state.step), "reconstructions", picture)
        usages = measured.bit_usages
        writer.histogram(int(state.step), "bit_usages", usages)
        writer.histogram(int(state.step), "bit_entropies", bit_entropies(usages).tolist())
        found = {f"reconstruction_{name}": value for name, value in measured.numbers.items()}
        if basis_inside(config):
            trained = models.Trained(tokenizer, params, int(state.step))
            found |= evaluate_tokenizer(config, trained, writer)
        return found

    plain = basis_lib.starts_from_plain(config)

    def program(*durations):
        check_discriminator(section, len(source), durations[0])
        networks, given, moments = frozen.load(config, mesh), {}, None
        fresh = not first_says(lambda: workdir.begun(folder))  # else all of it is in a checkpoint
        if fresh and plain:
            given = basis_lib.plain_params(config, mesh)
        if fresh and basis_lib.is_made_of_latents(config):
            init = lambda _: models.init_tokenizer(tokenizer, stream_key(config.seed, INIT_STREAM))
            params = models.fresh_params(init, mesh, config.seed)
            params |= given or pretrained_params(config, networks)
            moments = basis_lib.latent_moment(config, mesh, tokenizer, params, source)
        return make_program(
            config, networks, len(source), *durations, mesh=mesh, plain=given, second_moment=moments
        )

    steps, results = loop.train(
        STAGE,
        section,
        seed=config.seed,
        examples=len(source),
        mesh=mesh,
        make_program=program,
        batches=batches,
        evaluate=evaluate,
        folder=folder,
        init_from=pathlib.Path(config.init_from) / "tokenizer"
        if config.init_from and not plain
        else None,
        config=workdir.to_json(config),
        advice="more data.num_workers decode ahead, and images cropped beforehand take a sixth",
    )
    workdir.finish_training(folder, steps)
    return _report(config, steps, results)


def report_finished(config: ConfigDict) -> dict[str, object]:
    """Tells of a finished tokenizer as of one that was trained here; returns the summary."""
    meta = checkpoint.read_meta(pathlib.Path(config.workdir) / "tokenizer")
    others = {name: value for name, value in meta["results"].items() if name != "seconds"}
    return _report(config, meta["step"], others)


def _report(config, steps, results) -> dict[str, object]:
    (rows, columns), bits = sequence_grid(config), token_width(config)
    summary = {
        "tokenizer_step": steps,
        "bits_per_token": bits,
        "tokens": rows * columns,
        "bit_budget": bit_budget.discrete((rows, columns), 2**bits),
        **results,
    }
    if "seconds" in summary:  # all that was spent in this workdir
        summary[f"seconds_{STAGE}"] = round(summary.pop("seconds"), 1)
    return update_summary(config.workdir, summary)


def make_program(
    config: ConfigDict,
    networks: dict,
    examples: int,
    steps: int,
    warmup: int,
    constant: int = 0,
    modules: frozen.Modules | None = None,
    mesh: jax.sharding.Mesh | None = None,
    plain: dict | None = None,
    second_moment: np.ndarray | None = None,
) -> Program:
    """The tokenizer, its frozen networks and its discriminator.

    Args:
      networks: parameters of the frozen networks, from `frozen.load`.
      examples: images of an epoch.
      steps, warmup, constant: of the tokenizer's learning rate.
      modules: of the losses; None for those of the published sizes.
      mesh, second_moment: of a basis in the tokenizer, see `training.basis.training`.
      plain: parameters of a tokenizer without a basis to start from; {} or None: there is none.
    """
    section = config.train_tokenizer
    tokenizer = make_tokenizer(config, remat=section.remat)
    modules = modules or frozen.published_modules(tokenizer.dtype)
    basis = basis_lib.training(config, mesh, tokenizer, second_moment) if inside(tokenizer) else {}
    if basis and tokenizer.basis.needs_tokens and second_moment is None:
        basis.pop("fixed", None)  # it comes with the parameters that training starts from
    may_change = basis.get("trained", everything)
    pretrained = plain or pretrained_params(config, networks)
    crop_key = stream_key(config.seed, f"{STAGE}/crop")

    def group_of(path):
        return kind_of(config).group([key.key for key in path])

    def trained(path):
        group = group_of(path)
        if not may_change(path):
            return False
        if section.stage == "decoder_finetune":
            return group == "decoder"
        return group != "embeddings" or config.model.tokenizer.encoder.kind == "vit"

    shares = {"embeddings": section.encoder_learning_rate, "encoder": section.encoder_learning_rate}
    shares |= {"basis": section.basis_learning_rate} if basis else {}
    share = lambda path: shares.get(group_of(path), 1.0)

    opponent = make_opponent(tokenizer, modules.discriminator, section, crop_key, examples)
    return two_players(
        lambda key: models.init_tokenizer(tokenizer, key),
        make_loss_fn(tokenizer, modules, section, crop_key, config.model.basis.regularizer),
        section,
        steps,
        warmup,
        constant,
        opponent=opponent,
        trained=trained,
        share=None if set(shares.values()) == {1.0} else share,
        last=basis.get("last"),
        pretrained=pretrained | basis.get("pretrained", {}),
        frozen=networks,
        fixed=basis.get("fixed"),
    )


def check_discriminator(section: ConfigDict, examples: int, steps: int) -> None:
    """Checks, of a loss with a discriminator, that this comes into play in a run of so many steps.

    Raises:
      InputError: it would start after the last step.
    """
    if not section.loss.gan:
        return
    start, warmup = _discriminator_steps(section, examples)
    if start >= steps:
        raise InputError(
            f"{STAGE}.discriminator.start_steps",
            f"{start} of {steps} steps",
            f"an earlier start, or {STAGE}.loss.gan=0",
        )
    optimizer = section.discriminator.optimizer
    # Its schedule goes on at every second step, which is when it moves.
    moves = (steps - start) // 2
    warn_of_warmup(f"{STAGE}.discriminator.optimizer", optimizer.learning_rate, warmup, moves)


def _discriminator_steps(section: ConfigDict, examples: int) -> tuple[int, int]:
    """The step at which it starts, and the steps of its warm-up."""
    part, field = section.discriminator, f"{STAGE}.discriminator."
    return tuple(
        duration(own, f"{field}{name}", section.batch_size, examples, required=False)
        for own, name in ((part, "start_"), (part.optimizer, "optimizer.warmup_"))
    )


def pretrained_params(config: ConfigDict, networks: dict) -> dict:
    """What an encoder from SigLIP2 starts with; {} if it starts from scratch."""
    return {} if config.model.tokenizer.encoder.kind == "vit" else networks.get("siglip2", {})


def with_both_players(config: ConfigDict) -> ConfigDict:
    """The config with its discriminator, if it has one, from the first step on."""
    config = config.copy_and_resolve_references()
    start = dict(start_steps=0, start_epochs=0.0, start_images=0)
    config.train_tokenizer.discriminator.update(start)
    return config


def make_loss_fn(
    tokenizer: nn.Module,
    modules: frozen.Modules,
    section: ConfigDict,
    crop_key: jax.Array,
    regularizer: float = 0.0,
) -> FrozenLossFn:
    """What the tokenizer minimises: terms whose weight is not 0 (masked-bit paper, Table 6).

    Args:
      crop_key: of the crops that the discriminator is shown.
      regularizer: weight of the regulariser of a basis that is learned.
    """
    weights, size = section.loss.to_dict() | {"regularizer": regularizer}, section.network_size

    def loss_fn(params, batch, keys, dropout_key, step, networks):
        del dropout_key
        images = data.to_float(batch["image"])
        output = tokenizer.apply({"params": params}, images)
        decoded = output.images
        terms = {"l1": absolute_error(images, decoded), "l2": squared_error(images, decoded)}
        if inside(tokenizer):
            terms |= basis_terms(tokenizer, params, images, output, keys, weights)
        if weights["convnext"]:
            distance = functools.partial(
                convnext_distance, modules.convnext, networks["convnext_s"]
            )
            terms["convnext"] = distance(images, decoded, size)
        pairs = {}  # the two images' features by size: LPIPS and Gram share them if theirs is one
        for term, side in (("lpips", images.shape[1]), ("gram", size)):
            if not weights[term]:
                continue
            if side not in pairs:
                pairs[side] = vgg_pair(modules.vgg16, networks["vgg16"], images, decoded, side)
            if term == "lpips":
                terms[term] = lpips(networks["lpips"], *pairs[side])
            else:
                terms[term] = gram(*pairs[side])
        if weights["alignment"]:
            target = tokenizer.apply(
                {"params": networks["siglip2"]}, images, method=tokenizer.features
            )
            terms["alignment"] = squared_error(target, output.predicted_features)
        if "discriminator" in networks:
            heads, vectors = networks["discriminator"]
            crop = disc.draw_crop(jax.random.fold_in(crop_key, step), images.shape[1:3], size)
            shown = disc.prepare(decoded, crop, size)
            logits = disc.logits(modules.discriminator, heads, vectors, networks["dino_s8"], shown)
            terms["gan"] = disc.generator_loss(logits)
        return weighted(terms, weights)

    return loss_fn


def inside(tokenizer: nn.Module) -> bool:
    """Whether a tokenizer has a basis."""
    return isinstance(tokenizer, BasisFSQ)


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


def make_opponent(
    tokenizer: nn.Module,
    net: disc.Discriminator,
    section: ConfigDict,
    crop_key: jax.Array,
    examples: int,
) -> Opponent | None:
    """The discriminator; None if the loss has no term of it."""
    if not section.loss.gan:
        return None
    size = section.network_size

    def init(key):
        params_key, vectors_key = jax.random.split(key)
        params = net.init(params_key, jnp.zeros((1, size, size, 3)))["params"]["heads"]
        return params, disc.init_vectors(vectors_key, nn.unbox(params))

    def loss_fn(params, batch, keys, dropout_key, step, networks):
        del keys, dropout_key
        images = data.to_float(batch["image"])
        decoded = tokenizer.apply({"params": networks["generator"]}, images).images
        logits = []
        for i, shown in enumerate((images, disc.as_stored(decoded))):
            key = jax.random.fold_in(jax.random.fold_in(crop_key, step), i)
            shown = disc.prepare(shown, disc.draw_crop(key, images.shape[1:3], size), size)
            vectors = networks["vectors"][i]
            logits.append(disc.logits(net, params, vectors, networks["dino_s8"], shown))
        real, fake = logits
        terms = {
            "hinge": disc.hinge(real, fake),
            "logits_real": real.mean(axis=-1),
            "logits_fake": fake.mean(axis=-1),
        }
        return weighted(terms, {"hinge": 1.0, "logits_real": 0.0, "logits_fake": 0.0})

    start, warmup = _discriminator_steps(section, examples)
    return Opponent(
        init=init,
        power_iteration=disc.power_iteration,
        loss_fn=loss_fn,
        section=section.discriminator.optimizer,
        start=start,
        warmup=warmup,
    )


JOB = Job(run, batches_of("train_tokenizer"))
