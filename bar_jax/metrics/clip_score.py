"""CLIP score: do samples look like the text of their class?"""

import numpy as np

from bar_jax.metrics.kind import MetricKind, Seen


def clip_score(images: np.ndarray, texts: np.ndarray, labels: np.ndarray) -> float:
    """Mean cosine of an image's features and those of the text of its class.

    Args:
      images: [N, D].
      texts: [C, D], of each class.
      labels: [N].
    """
    unit = lambda x: x / np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True)
    return float(np.mean(np.sum(unit(images) * unit(texts)[labels], axis=-1)))


def _compute(seen: Seen) -> tuple[float]:
    return (clip_score(seen.samples, seen.class_texts, seen.labels),)


KIND = MetricKind(
    _compute,
    ("clip_score",),
    rows="clip_l14/image",
    labels=True,
    class_texts=True,
    fields=("weights.clip_l14", "clip_vocabulary", "class_names"),
)
