"""FID's Inception v3: what its PyTorch copies name their tensors, in our layout."""

import re
from collections.abc import Mapping

import numpy as np

from bar_jax.nn.inception import Inception
from bar_jax.pretrained.outside import Network
from bar_jax.runtime.errors import InputError

BATCH_NORM_EPS = 1e-3
BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def inception_params(tensors: Mapping[str, np.ndarray]) -> dict:
    """Parameters of `nn.inception.Inception` from `X.conv.weight`, `X.bn.*` and `fc.weight`.

    Every convolution's batch normalisation is folded into its kernel and bias, in float64. The
    classifier's bias is not read: the Inception Score leaves it out.

    Raises:
      InputError: naming a tensor that is missing.
    """
    params: dict = {"logits": _tensor(tensors, "fc.weight").T}
    for name in tensors:
        if not (found := re.fullmatch(r"(.+)\.conv\.weight", name)):
            continue
        node = params
        for key in found[1].split("."):
            node = node.setdefault(key, {})
        weight = _tensor(tensors, name).astype(np.float64)
        gamma, beta, mean, variance = (
            _tensor(tensors, f"{found[1]}.bn.{part}").astype(np.float64) for part in BATCH_NORM
        )
        factor = gamma / np.sqrt(variance + BATCH_NORM_EPS)
        kernel = weight.transpose(2, 3, 1, 0) * factor
        node["conv"] = {
            "kernel": kernel.astype(np.float32),
            "bias": (beta - mean * factor).astype(np.float32),
        }
    return params


NETWORK = Network(
    file="pt_inception-2015-12-05-6726825d.pth",
    origin="the releases of github.com/mseitzer/pytorch-fid, see third_party/inception",
    module=Inception(),
    importer=inception_params,
    manifest="inception/inception_2015.json",
    resize="to 299 px as TensorFlow 1: bilinear, no half-pixel centres, no antialiasing",
)


def _tensor(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in tensors:
        raise InputError("weights", f"no tensor {name}", "the published model's tensors")
    return np.asarray(tensors[name])
