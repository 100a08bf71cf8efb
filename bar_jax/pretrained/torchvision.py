"""torchvision's classifiers: the convolutions of its VGG16, and its ConvNeXts."""

import re
from collections.abc import Mapping

import numpy as np

from bar_jax.nn.convnext import ConvNeXt
from bar_jax.nn.vgg import CONVOLUTIONS, VGG16, conv_name
from bar_jax.pretrained.layout import Layout, conv, layer_norm, linear, same, to_ours
from bar_jax.pretrained.outside import Network


def vgg16_params(tensors: Mapping[str, np.ndarray], prefix: str = "features.") -> dict:
    """Parameters of `nn.vgg.VGG16` from the tensors `features.N.weight` and `.bias`.

    Raises:
      InputError: naming a tensor that is missing.
    """
    layout: Layout = {}
    number = 0  # of a layer: ReLUs and poolings count too
    for stage, depth in enumerate(CONVOLUTIONS):
        for layer in range(depth):
            layout |= conv(conv_name(stage, layer), f"{prefix}{number}")
            number += 2
        number += 1
    return to_ours(tensors, layout, {})


def convnext_params(tensors: Mapping[str, np.ndarray]) -> dict:
    """Parameters of `nn.convnext.ConvNeXt`, whose depths follow from the names.

    Raises:
      InputError: naming a tensor that is missing.
    """
    layout: Layout = {
        **conv("stem", "features.0.0"),
        **layer_norm("stem_norm", "features.0.1"),
        **layer_norm("norm", "classifier.0"),
        **linear("logits", "classifier.2"),
    }
    fields = {}
    for stage, depth in enumerate(convnext_depths(tensors)):
        if stage:
            layout |= layer_norm(f"down{stage}_norm", f"features.{2 * stage}.0")
            layout |= conv(f"down{stage}", f"features.{2 * stage}.1")
        # Each stage has a depth of its own, so its layers are a field of its own.
        fields[f"layer{stage}"] = range(depth)
        ours, theirs = f"stage{stage}", f"features.{2 * stage + 1}.{{layer{stage}}}"
        layout |= {
            f"{ours}/depthwise/kernel": (
                f"{theirs}.block.0.weight",
                "layer c 1 kh kw -> layer kh kw 1 c",
            ),
            **same(f"{ours}/depthwise/bias", f"{theirs}.block.0.bias"),
            **layer_norm(f"{ours}/norm", f"{theirs}.block.2"),
            **linear(f"{ours}/mlp/up", f"{theirs}.block.3"),
            **linear(f"{ours}/mlp/down", f"{theirs}.block.5"),
            f"{ours}/scale": (f"{theirs}.layer_scale", "layer c 1 1 -> layer c"),
        }
    return to_ours(tensors, layout, fields)


def convnext_depths(tensors: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Blocks of each stage: stage s is `features.(2 s + 1)`."""
    found = [re.match(r"features\.(\d+)\.(\d+)\.layer_scale$", name) for name in tensors]
    blocks = [(int(match[1]) // 2, int(match[2])) for match in found if match]
    stages = 1 + max((stage for stage, _ in blocks), default=-1)
    return tuple(sum(stage == s for stage, _ in blocks) for s in range(stages))


VGG16_NETWORK = Network(
    file="vgg16-397923af.pth",
    origin="torchvision, VGG16_Weights.IMAGENET1K_V1",
    module=VGG16(),
    importer=vgg16_params,
    manifest="torchvision/vgg16.json",
    in_package=True,
)
CONVNEXT_NETWORK = Network(
    file="convnext_small-0c510722.pth",
    origin="torchvision, ConvNeXt_Small_Weights.IMAGENET1K_V1",
    module=ConvNeXt(),
    importer=convnext_params,
    manifest="torchvision/convnext_s.json",
)
