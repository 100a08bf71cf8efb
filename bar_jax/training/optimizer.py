"""AdamW with warm-up and cosine, clipping, and the published rule of what does not decay."""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from bar_jax.config import default_config, duration

logger = logging.getLogger(__name__)
NO_DECAY = default_config().train_generator.optimizer.no_decay


class Durations(NamedTuple):
    """Steps of a run: all of them, its warm-up, and up to which the learning rate is constant."""

    steps: int
    warmup: int = 0
    constant: int = 0


def durations(stage: str, section: ConfigDict, images: int) -> Durations:
    """Those of a stage's section, with so many images in an epoch."""
    size = section.batch_size
    warmup, constant = (
        duration(section.optimizer, f"{stage}.optimizer.{name}_", size, images, required=False)
        for name in ("warmup", "constant")
    )
    return Durations(duration(section, f"{stage}.", size, images), warmup, constant)


def warmup_cosine(
    peak: float, end: float, warmup: int, total: int, constant: int = 0
) -> Callable[[jax.Array | int], jax.Array]:
    """Learning rate at a step: linear from 0 to `peak` at `warmup`, cosine to `end` at `total`.

    Past `total` the cosine goes on, as in the published schedule.

    Args:
      constant: the cosine begins here, if that is after the warm-up; never if it is not before
        `total`.
    """
    start = max(warmup, constant)

    def cosine(step):
        # (1 + cos(pi p)) / 2, in the form that keeps its precision near p = 1.
        return end + (peak - end) * jnp.cos(jnp.pi / 2 * (step / max(total - start, 1))) ** 2

    schedules = [lambda step: peak * step / max(warmup, 1), optax.constant_schedule(peak)]
    boundaries = [warmup]
    if not 0 < total <= constant:
        schedules, boundaries = [*schedules, cosine], [*boundaries, start]
    joined = optax.join_schedules(schedules, boundaries)
    return lambda step: joined(jnp.asarray(step, float))


def warn_of_warmup(field: str, peak: float, warmup: int, updates: int) -> None:
    """Says of a warm-up that it is not over when training ends.

    Args:
      field: the optimiser's section.
      updates: of the whole run.
    """
    if warmup >= updates:
        reached = peak * (updates - 1) / warmup
        logger.warning(
            "%s.warmup: %d steps, in a run of %d; the learning rate ends at %.3g, not at %.3g",
            *(field, warmup, updates, reached, peak),
        )


def warn_of_no_decay(field: str, params: dict, no_decay: Sequence[str]) -> None:
    """Names those of `no_decay` that no parameter's path holds, unless other models have them.

    Args:
      field: the optimiser's section.
      params: or their shapes.
    """
    for name in no_decay:
        if name not in NO_DECAY and all(jax.tree.leaves(decays(params, [name]))):
            logger.warning("%s.no_decay: %r is in the name of no parameter", field, name)


def decays(params: dict, no_decay: Sequence[str]) -> dict:
    """True for each parameter that weight decay acts on: whose path holds none of `no_decay`."""

    def by_path(path, _):
        name = jax.tree_util.keystr(path, simple=True, separator="/").lower()
        return not any(part in name for part in no_decay)

    return jax.tree_util.tree_map_with_path(by_path, params)


def adamw(
    schedule: Callable[[jax.Array], jax.Array],
    *,
    b1: float,
    b2: float,
    weight_decay: float,
    no_decay: Sequence[str],
    clip_norm: float,
    after: Sequence[optax.GradientTransformation] = (),
) -> optax.GradientTransformation:
    """AdamW on gradients clipped to a global norm.

    Args:
      no_decay: see `decays`.
      after: what is done to the updates in the end, such as a projection.
    """
    mask = functools.partial(decays, no_decay=tuple(no_decay))
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=mask),
        *after,
    )


def scaled(share: Callable[[tuple], float]) -> optax.GradientTransformation:
    """Multiplies each parameter's update by its share, given its path.

    Without a state, so that it has no place in checkpoints; that of `optax.partition` would.
    """
    by_path = lambda path, update: share(path) * update
    return optax.stateless(lambda tree, _: jax.tree_util.tree_map_with_path(by_path, tree))


def from_section(
    section: ConfigDict, durations: Durations, *after: optax.GradientTransformation
) -> tuple[optax.GradientTransformation, Callable[[jax.Array], jax.Array]]:
    """The optimiser and the schedule of a config's `optimizer` section.

    Args:
      after: see `adamw`.
    """
    ends = (section.learning_rate, section.end_learning_rate)
    schedule = warmup_cosine(*ends, durations.warmup, durations.steps, durations.constant)
    names = ("b1", "b2", "weight_decay", "no_decay", "clip_norm")
    return adamw(schedule, **{name: section[name] for name in names}, after=after), schedule
