"""The Frechet distance of two Gaussians: FID, sFID, FD-DINOv2, by what the features are."""

import numpy as np
from scipy import linalg

from bar_jax.metrics.kind import MetricKind, Seen, counted
from bar_jax.metrics.moments import Gaussian
from bar_jax.runtime.errors import InputError


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of the covariances S.

    With S = F F^T the trace of the root is the sum of the singular values of F_a^T F_b. Unlike the
    root of the product, which is not symmetric, this needs no care for covariances that are
    singular (fewer images than features): there is no imaginary part to drop and nothing to add to
    the diagonal, and the distance of equal Gaussians is 0 to rounding.

    Source: Dowson & Landau 1982; as FID, Heusel et al. 2017.

    Raises:
      InputError: if the features are of different sizes, or a number is NaN or infinite.
    """
    if len(a.mean) != len(b.mean):
        raise InputError(
            "Frechet distance", f"features of {len(a.mean)} and {len(b.mean)}", "one size"
        )
    for gaussian in (a, b):
        if not all(np.isfinite(numbers).all() for numbers in gaussian):
            raise InputError("Frechet distance", "NaN or infinity in mean or covariance", "numbers")
    root_trace = linalg.svdvals(_factor(a.covariance).T @ _factor(b.covariance)).sum()
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    distance = np.sum(np.square(a.mean - b.mean)) + traces - 2 * root_trace
    return max(float(distance), 0.0)  # only rounding makes it negative


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F [D, rank] with F F^T = covariance.

    Directions whose variance is rounding are left out: it is 1e-16 of the largest variance, but its
    root, which the distance is made of, would be 1e-8 of the largest deviation.
    """
    covariance = np.asarray(covariance, np.float64)
    variances, directions = linalg.eigh(covariance)
    kept = variances > len(variances) * np.finfo(np.float64).eps * variances[-1]
    return directions[:, kept] * np.sqrt(variances[kept])


def few_for_features(samples: int, compared: int | None, size: int) -> str:
    """A remark on a Frechet distance of few images; "" if they are enough.

    Args:
      compared: reference images, None if their number is not known.
      size: D, features of an image.
    """
    counts = {"sample": samples, "reference image": size + 1 if compared is None else compared}
    few = [counted(count, what) for what, count in counts.items() if count <= size]
    if not few:
        return ""
    found = f"{' and '.join(few)} for {size} features"
    return f"{found}: a singular covariance, and a biased distance"


def _compute(seen: Seen) -> tuple[float]:
    return (frechet_distance(seen.samples, seen.reference),)


def kind(name: str, output: str, stored: tuple[str, str], **options) -> MetricKind:
    """The Frechet distance of an output of a network; a covariance is one of two images."""
    return MetricKind(
        _compute,
        (name,),
        moments=output,
        compares=True,
        stored=stored,
        fewest=2,
        note=few_for_features,
        **options,
    )


FID = kind("fid", "inception/pool", ("mu", "sigma"))  # these names and the next are ADM's
SFID = kind("sfid", "inception/spatial", ("mu_s", "sigma_s"))
FD_DINOV2 = kind(
    "fd_dinov2",
    "dinov2_l14/class_token",
    ("mu_dinov2_l14", "sigma_dinov2_l14"),
    fields=("weights.dinov2_l14",),
)
