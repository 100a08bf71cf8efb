"""Inception Score: images that each look like one class, and together like all of them."""

import numpy as np
from scipy.special import log_softmax, logsumexp

from bar_jax.metrics.kind import MetricKind, Seen, counted
from bar_jax.metrics.moments import check_finite
from bar_jax.runtime.errors import InputError

GROUP = 5000  # images


def inception_score(logits: np.ndarray, group: int = GROUP) -> tuple[float, float]:
    """exp of the mean KL divergence of an image's class probabilities from their group's mean.

    The images are taken in order, `group` at a time (the last group may be smaller), as the ADM
    evaluator takes them. The score depends on the order, and grows with `group`.

    Source: Salimans et al. 2016.

    Args:
      logits: [N, C]; the published scores are of the 1008 logits of the 2015 Inception without
        their bias.

    Returns:
      Mean and standard deviation over the groups.

    Raises:
      InputError: if there are no images, or logits are not finite.
    """
    if not len(logits):
        raise InputError("Inception Score", "no images", "at least 1")
    check_finite(logits)
    scores = []
    for first in range(0, len(logits), group):
        log_p = log_softmax(np.asarray(logits[first : first + group], np.float64), axis=1)
        log_mean = logsumexp(log_p, axis=0) - np.log(len(log_p))
        scores.append(np.exp(np.mean(np.sum(np.exp(log_p) * (log_p - log_mean), axis=1))))
    return float(np.mean(scores)), float(np.std(scores))


def _compute(seen: Seen) -> tuple[float, float]:
    return inception_score(seen.samples)


def _note(samples: int, compared: int | None, size: int | None) -> str:
    del compared, size
    if not samples % GROUP:
        return ""
    last = f"{counted(samples % GROUP, 'image')}, not {GROUP}: the score grows with the group"
    return f"of {last}" if samples < GROUP else f"the last group is of {last}"


# That of one image is 1, whatever it shows.
KIND = MetricKind(
    _compute,
    ("inception_score", "inception_score_std"),
    rows="inception/logits",
    fewest=2,
    note=_note,
)
