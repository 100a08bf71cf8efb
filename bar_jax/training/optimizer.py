"""AdamW with warm-up and cosine, clipping, and the published rule of what does not decay."""

import functools
import logging
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from bar_jax.config import default_config

logger = logging.getLogger(__name__)
NO_DECAY = default_config().train_generator.optimizer.no_decay


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

    def schedule(step):
        step = jnp.asarray(step, float)
        progress = (step - start) / max(total - start, 1)
        # (1 + cos(pi p)) / 2, in the form that keeps its precision near p = 1.
        cosine = end + (peak - end) * jnp.cos(jnp.pi / 2 * progress) ** 2
        cosine = jnp.where((step < start) | (0 < total <= constant), peak, cosine)
        return jnp.where(step < warmup, peak * step / max(warmup, 1), cosine)

    return schedule


def warn_of_warmup(field: str, peak: float, warmup: int, moves: int) -> None:
    """Says of a warm-up that it is not over when training ends.

    Args:
      field: the optimiser's section.
      moves: updates of the whole run.
    """
    if warmup >= moves:
        reached = peak * (moves - 1) / warmup
        logger.warning(
            "%s.warmup: %d steps, in a run of %d; the learning rate ends at %.3g, not at %.3g",
            *(field, warmup, moves, reached, peak),
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
    share: Callable[[tuple], float] | None = None,
    last: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """AdamW on gradients clipped to a global norm.

    Args:
      no_decay: see `decays`.
      share: path of a parameter -> what its learning rate is of the schedule's; None: all of it.
      last: what is done to the updates in the end, such as a projection; None: nothing.
    """
    mask = functools.partial(decays, no_decay=tuple(no_decay))
    chain = [
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=mask),
    ]

    def scale(updates, state, params=None):
        del params
        scaled = jax.tree_util.tree_map_with_path(lambda path, u: share(path) * u, updates)
        return scaled, state

    if share is not None:
        chain.append(optax.GradientTransformation(lambda params: optax.EmptyState(), scale))
    return optax.chain(*chain, *([last] if last else []))


def from_section(
    section: ConfigDict,
    warmup: int,
    total: int,
    share: Callable[[tuple], float] | None = None,
    constant: int = 0,
    last: optax.GradientTransformation | None = None,
) -> tuple[optax.GradientTransformation, Callable[[jax.Array], jax.Array]]:
    """The optimiser and the schedule of a config's `optimizer` section.

    Args:
      warmup, total, constant: steps, see `warmup_cosine`.
      share, last: see `adamw`.
    """
    ends = (section.learning_rate, section.end_learning_rate)
    schedule = warmup_cosine(*ends, warmup, total, constant)
    tx = adamw(
        schedule,
        b1=section.b1,
        b2=section.b2,
        weight_decay=section.weight_decay,
        no_decay=section.no_decay,
        clip_norm=section.clip_norm,
        share=share,
        last=last,
    )
    return tx, schedule
