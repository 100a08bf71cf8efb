"""What stage 2 trains: a generator, on cached tokens."""

import functools
import itertools
import logging
import math
from collections.abc import Iterable, Iterator

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from bar_jax import data
from bar_jax.bases import RANDOM
from bar_jax.bases.permutation import random_share
from bar_jax.config import duration
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime import preemption
from bar_jax.training import optimizer, restore, step
from bar_jax.training.basis import BasisTraining
from bar_jax.training.optimizer import Durations
from bar_jax.training.step import Batch, LossFn, Program, UpdateRule, quotients

logger = logging.getLogger(__name__)
LATENT = 2**31  # an example's key, folded with this, draws its latents


def make_program(
    generator: nn.Module,
    loss_fn: LossFn,
    section: ConfigDict,
    durations: Durations,
    basis: BasisTraining,
) -> Program:
    """The training of a generator.

    Args:
      section: `train_generator`.
      basis: how the generator's is trained, see `training.basis.training`.
    """
    tx, schedule = optimizer.from_section(section.optimizer, durations, *basis.after)
    rule = UpdateRule(tx, schedule, section.ema_decay, section.accumulate, basis.trained)
    init = functools.partial(restore.init_generator, generator)
    program = step.make_program(init, loss_fn, rule)
    return program._replace(pretrained=basis.pretrained, fixed=basis.fixed)


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

    def loss_fn(params, batch, keys, frozen=()):
        del frozen
        of_batch = None if batch_key is None else jax.random.fold_in(batch_key, keys.step)
        share = random_share(keys.step, anneal_start, anneal_end) if is_random(generator) else 0.0
        return generator.apply(
            {"params": params},
            latents(tokenizer, batch["tokens"], keys.examples),
            batch["label"],
            generator.draw(keys.examples, of_batch),
            share,
            deterministic=False,
            method=generator.loss,
            rngs={"dropout": keys.dropout},
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


def anneal_steps(config: ConfigDict, images: int) -> tuple[int, int]:
    """The steps at which the share of random orders starts and ends to fall.

    Args:
      images: of an epoch.
    """
    order, size = config.model.generator.order, config.train_generator.batch_size
    field = "model.generator.order.anneal_{}_".format
    start, end = (
        duration(order, field(point), size, images, required=False) for point in ("start", "end")
    )
    return start, end


def warn_of_order(steps: int, start: int, end: int) -> None:
    """Says that training ends, after so many steps, before random orders have given way."""
    if end > steps:
        logger.warning(
            "model.generator.order.anneal_end: %d steps, in a run of %d; %.3g of the orders are "
            "random to its end",
            *(end, steps, random_share(steps, start, end)),
        )


def validation_batches(
    cache: data.TokenCache, mesh: jax.sharding.Mesh, batch_size: int, images: int
) -> Iterator[Batch]:
    """About so many validation images' tokens, in the fixed order, on the mesh."""
    rows = mesh_lib.batch_share(mesh).rows(batch_size)
    batches = data.token_eval_batches(cache, batch_size=batch_size, rows=rows)
    for batch in itertools.islice(batches, math.ceil(images / batch_size)):
        preemption.check("validation loss: not finished")
        yield mesh_lib.put_batch(mesh, {n: batch[n] for n in ("tokens", "label", "mask")})


def validation_loss(
    generator: nn.Module,
    tokenizer: nn.Module,
    params: dict,
    batches: Iterable[Batch],
    key: jax.Array,
) -> dict[str, float]:
    """The loss over batches, with every label.

    Args:
      key: of the random draws: of a fixed stream, so that two checkpoints are asked the same.

    Returns:
      `validation_loss` and the other means of the generator's `loss`. Of the masked-bit head the
      loss is in nats (hidden bits weigh 1, visible ones 0.1), and over hidden bits alone are
      `bits_per_bit` (cross-entropy in bits) and `bit_accuracy`.
    """
    totals = None
    for i, batch in enumerate(batches):
        own = jax.random.fold_in(key, i)
        sums = jax.device_get(_loss(generator, tokenizer, params, batch, own))
        totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
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
