"""Stage 2: train the generator on cached tokens.

Writes `generator/` (checkpoints), `samples_during_training.png`, and into `summary.json` the
validation loss: of bits in bits per bit, of real-valued tokens as the generator's own. Where the
basis is a matrix it is also kept and drawn at every evaluation, see
`inspection/basis.py`; FID or another of `train_generator.evaluate_metrics` is measured on samples
then (basis paper, Figure 7). With `data.source=tokens` the cache is packed first if it is not
there, and without a tokenizer in the workdir no pictures are drawn.
"""

import functools
import logging
import pathlib

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from bar_jax import data
from bar_jax.bases import RANDOM
from bar_jax.bases.permutation import random_share
from bar_jax.config import duration
from bar_jax.data import caches
from bar_jax.data.packing import packed_fingerprint
from bar_jax.generators import make_generator
from bar_jax.inspection import basis as basis_lib
from bar_jax.metrics import measuring as measuring_lib
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime import preemption, workdir
from bar_jax.runtime.job import Job, batches_of
from bar_jax.runtime.writer import update_summary
from bar_jax.sampling.draw import Models, sample_images
from bar_jax.sampling.evaluation import measure_generator
from bar_jax.tokenizers import make_tokenizer, sequence_grid, token_width
from bar_jax.training import loop
from bar_jax.training import restore as models
from bar_jax.training.basis import Moments, token_moment
from bar_jax.training.basis import training as basis_training
from bar_jax.training.players import one_player
from bar_jax.training.step import LossFn, quotients, stream_key
from bar_jax.visualize.grid import GRID_ROWS, class_grid, save_png

logger = logging.getLogger(__name__)
STAGE = "train_generator"
LATENT = 2**31  # an example's key, folded with this, draws its latents
# What an evaluation finds -> its name in summary.json.
FINAL = {
    "bits_per_bit": "generator_loss_bits",
    "bit_accuracy": "generator_bit_accuracy",
    "host_loss": "generator_loss",
    "residual_loss": "generator_residual_loss",
    **{name: name for name in basis_lib.NUMBERS},
}


def run(config: ConfigDict) -> dict[str, object]:
    """Trains to the end, or goes on from the last checkpoint; returns the summary."""
    section, mesh = config.train_generator, mesh_lib.make_mesh(**config.mesh)
    tokenizer = models.find_tokenizer(config, mesh)
    if config.data.source == "tokens":
        fingerprints = [packed_fingerprint(config)]
    else:
        fingerprints = models.fingerprints(config, tokenizer.params)
    cache, validation = (caches.open_split(config, split, fingerprints) for split in caches.SPLITS)
    folder = workdir.begin_training(config, "generator")
    generator = make_generator(config, remat=section.remat)
    sampler = models.make_sampler(config)
    codec = make_tokenizer(config)
    start, end = (anneal_step(config, point, len(cache)) for point in ("start", "end"))
    splits = (cache, validation)

    @functools.cache  # a run that is finished does not need them
    def moments():
        return Moments(*(token_moment(config, generator, codec, split) for split in splits))

    watched = basis_lib.is_watched(config)
    metrics = measuring_lib.training_metrics(config) if tokenizer is not None else ()
    measuring = functools.cache(
        lambda: measuring_lib.prepare(config, mesh, metrics, section.evaluate_samples)
    )

    def batches(start_step):
        return data.token_batches(
            cache,
            batch_size=section.batch_size,
            seed=config.seed,
            mirror=config.data.mirror,
            start_step=start_step,
            rows=mesh_lib.batch_share(mesh).rows(section.batch_size),
        )

    def evaluate(state, writer):
        params = state.params if state.ema is None else state.ema
        step = int(state.step)
        trained = models.Trained(sampler, params, step)
        if tokenizer is not None:
            picture = _sample_grid(config, mesh, Models(trained, tokenizer))
            if jax.process_index() == 0:
                save_png(pathlib.Path(config.workdir) / "samples_during_training.png", picture)
            writer.image(step, "samples", picture)
        found = validation_loss(
            generator, codec, params, validation, mesh, config.seed, section.batch_size,
            section.evaluate_images,
        )  # fmt: skip
        if metrics and measuring().metrics:
            measured = config, mesh, measuring(), Models(trained, tokenizer)
            found |= measure_generator(*measured)
        if watched:
            found |= basis_lib.evaluate_generator(config, moments(), trained, tokenizer, writer)
        return found

    def make_program(*durations):
        if is_random(generator):
            warn_of_order(durations[0], start, end)
        if metrics:
            # A wrong reference, and too few samples, are told now, not hours later.
            notes = {f"{STAGE}_{name}_note": note for name, note in measuring().notes.items()}
            own = lambda name: name.startswith(f"{STAGE}_") and name.endswith("_note")
            update_summary(config.workdir, notes, own)
        return one_player(
            lambda k: models.init_generator(generator, k),
            make_loss_fn(generator, codec, start, end, stream_key(config.seed, f"{STAGE}/batch")),
            section,
            *durations,
            **basis_training(config, mesh, generator, moments().train if watched else None),
        )

    steps, results = loop.train(
        STAGE,
        section,
        seed=config.seed,
        examples=len(cache),
        mesh=mesh,
        make_program=make_program,
        batches=batches,
        evaluate=evaluate,
        folder=folder,
        init_from=_init_from(config),
        config=workdir.to_json(config),
        advice="the token cache is read from its files, which may lie on a slow disk",
    )
    found = {final: results[name] for name, final in FINAL.items() if name in results}
    if "bits_per_bit" in results:
        # Of hidden bits, at the shares of them that training draws: no bound of the likelihood.
        rows, columns = sequence_grid(config)
        bits = rows * columns * token_width(config)
        found["generator_bits_per_image"] = results["bits_per_bit"] * bits
    seconds = {f"seconds_{STAGE}": round(results["seconds"], 1)}
    return update_summary(config.workdir, {"generator_step": steps, **found, **seconds})


def _init_from(config) -> pathlib.Path | None:
    """The generator to start from; in a pipeline `init_from` may have a tokenizer alone."""
    if not config.init_from:
        return None
    folder = pathlib.Path(config.init_from) / "generator"
    if config.job == "pipeline" and not workdir.begun(folder):
        logger.info("%s: starts from scratch, %s has no generator", STAGE, config.init_from)
        return None
    return folder


def make_loss_fn(
    generator: nn.Module,
    tokenizer: nn.Module,
    anneal_start: int,
    anneal_end: int,
    batch_key: jax.Array | None = None,
) -> LossFn:
    """What a training step minimises.

    Args:
      tokenizer: the module alone; tells what cached tokens are the tokens of.
      anneal_start, anneal_end: steps between which random orders (RAR) give way to raster.
      batch_key: of what is drawn once for a batch, also where it comes in pieces; None: each piece
        draws its own.
    """

    def loss_fn(params, batch, keys, dropout_key, step):
        return generator.apply(
            {"params": params},
            latents(tokenizer, batch["tokens"], keys),
            batch["label"],
            generator.draw(
                keys, None if batch_key is None else jax.random.fold_in(batch_key, step)
            ),
            random_share(step, anneal_start, anneal_end) if is_random(generator) else 0.0,
            deterministic=False,
            method=generator.loss,
            rngs={"dropout": dropout_key},
        )

    return loss_fn


def is_random(generator: nn.Module) -> bool:
    """Whether an example's tokens may be written in any order (RAR)."""
    return generator.basis.kind == RANDOM


def latents(tokenizer: nn.Module, cached: jax.Array, keys: jax.Array) -> jax.Array:
    """What a cache holds -> what is modelled: bits as they are, real numbers drawn if need be.

    Args:
      cached: [B, N, ...].
      keys: [B] a key of each example.
    """
    if not hasattr(tokenizer, "latents"):
        return cached
    return tokenizer.latents(cached, jax.vmap(jax.random.fold_in, (0, None))(keys, LATENT))


def anneal_step(config, point, images) -> int:
    """The step at which the share of random orders starts or ends to fall."""
    field = f"model.generator.order.anneal_{point}_"
    batch_size = config.train_generator.batch_size
    return duration(config.model.generator.order, field, batch_size, images, required=False)


def warn_of_order(steps: int, start: int, end: int) -> None:
    """Says that training ends, after so many steps, before random orders have given way."""
    if end > steps:
        logger.warning(
            "model.generator.order.anneal_end: %d steps, in a run of %d; %.3g of the orders are "
            "random to its end",
            *(end, steps, random_share(steps, start, end)),
        )


def validation_loss(
    generator, tokenizer, params, cache, mesh, seed: int, batch_size: int, limit: int
) -> dict[str, float]:
    """The loss over (about `limit`) validation images, with every label, in the fixed order.

    Random draws come from a fixed stream, so that two checkpoints are asked the same.

    Returns:
      `validation_loss` and the other means of the generator's `loss`. Of the masked-bit head the
      loss is in nats (hidden bits weigh 1, visible ones 0.1), and over hidden bits alone are
      `bits_per_bit` (cross-entropy in bits) and `bit_accuracy`.
    """
    key = stream_key(seed, "validation")
    totals, seen = None, 0
    for i, batch in enumerate(
        data.token_eval_batches(
            cache,
            batch_size=batch_size,
            rows=mesh_lib.batch_share(mesh).rows(batch_size),
        )
    ):
        preemption.check("validation loss: not finished")
        arrays = mesh_lib.put_batch(mesh, {n: batch[n] for n in ("tokens", "label", "mask")})
        own = jax.random.fold_in(key, i)
        sums = jax.device_get(_loss(generator, tokenizer, params, arrays, own))
        totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
        seen += batch_size
        if seen >= limit:
            break
    means = {name: float(value) for name, value in quotients(totals).items()}
    return {"validation_loss": means.pop("loss"), **means}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _loss(generator, tokenizer, params, batch, key):
    keys = jax.random.split(key, batch["label"].shape[0])
    return generator.apply(
        {"params": params},
        latents(tokenizer, batch["tokens"], keys),
        batch["label"],
        generator.draw(keys),
        0.0,
        deterministic=True,
        counted=batch["mask"],
        method=generator.loss,
    )


def _sample_grid(config, mesh, models) -> np.ndarray:
    """One batch of samples, a row per class."""
    classes = min(config.data.num_classes, GRID_ROWS)
    labels = np.arange(config.sample.batch_size, dtype=np.int32) % classes
    images = sample_images(config, mesh, models, labels)
    return class_grid(images, labels)


JOB = Job(run, batches_of("train_generator", "sample", "evaluate"), draws_images=True)
