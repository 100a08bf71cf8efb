"""DINO's ViT, the discriminator's frozen backbone, and the published names of the heads on it."""

from collections.abc import Mapping

import numpy as np

from bar_jax.losses.discriminator import DINO
from bar_jax.pretrained.layout import Layout, count, layer_norm, linear, same, to_ours, to_published
from bar_jax.pretrained.outside import Network

_BLOCK = "blocks.{layer}"
BACKBONE: Layout = {
    "patch_embedding/kernel": ("patch_embed.proj.weight", "d c p1 p2 -> (p1 p2 c) d"),
    **same("patch_embedding/bias", "patch_embed.proj.bias"),
    "vit/class_embedding": ("cls_token", "1 1 d -> d"),
    "vit/position_embedding": ("pos_embed", "1 place d -> place d"),
    **layer_norm("vit/blocks/attention_norm", f"{_BLOCK}.norm1"),
    **linear("vit/blocks/qkv", f"{_BLOCK}.attn.qkv", outputs="three heads c"),
    **linear("vit/blocks/out", f"{_BLOCK}.attn.proj", inputs="heads c"),
    **layer_norm("vit/blocks/mlp_norm", f"{_BLOCK}.norm2"),
    **linear("vit/blocks/mlp/up", f"{_BLOCK}.mlp.fc1"),
    **linear("vit/blocks/mlp/down", f"{_BLOCK}.mlp.fc2"),
}

# Ours -> published name in a head.
CONVOLUTIONS = {"first": "0.0", "second": "1.fn.0", "last": "2"}
NORMS = {"first": "0.1", "second": "1.fn.1"}
HEADS: Layout = {}
VECTORS: Layout = {}
for _ours, _theirs in CONVOLUTIONS.items():
    _name = f"heads.{{level}}.{_theirs}"
    HEADS |= {
        f"{_ours}/kernel": (f"{_name}.weight_orig", "level o i k -> level k i o"),
        **same(f"{_ours}/bias", f"{_name}.bias"),
    }
    # The convolution over the patches alone is wider than one.
    _flat = "(i k) -> level k i" if _ours == "second" else "(i 1) -> level 1 i"
    VECTORS |= {
        **same(f"{_ours}/u", f"{_name}.weight_u"),
        f"{_ours}/v": (f"{_name}.weight_v", f"level {_flat}"),
    }
for _ours, _theirs in NORMS.items():
    HEADS |= same(f"{_ours}_scale", f"heads.{{level}}.{_theirs}.weight")
    HEADS |= same(f"{_ours}_bias", f"heads.{{level}}.{_theirs}.bias")


def backbone_params(tensors: Mapping[str, np.ndarray], heads: int = 6) -> dict:
    """Parameters of `losses.discriminator.DINO` from a state dict of DINO's ViT.

    The bias of the keys is set to zero, as the published discriminator does. The last norm is not
    read.

    Args:
      heads: of the attention.

    Raises:
      InputError: naming a tensor that is missing.
    """
    layers = count(tensors, r"blocks\.(\d+)\.")
    params = to_ours(tensors, BACKBONE, {"layer": range(layers)}, heads=heads, three=3)
    bias = params["vit"]["blocks"]["qkv"]["bias"].copy()
    bias[:, 1] = 0
    params["vit"]["blocks"]["qkv"]["bias"] = bias
    return params


NETWORK = Network(
    file="dino_vit_small_patch8_224.pth",
    origin="discs/ of huggingface.co/nyu-visionx/RAE-collections",
    module=DINO(),
    importer=backbone_params,
    manifest="dino/dino_s8.json",
)


def head_params(tensors: Mapping[str, np.ndarray]) -> tuple[dict, dict]:
    """The discriminator's heads, and the vectors of their spectral norms, from published names.

    Raises:
      InputError: naming a tensor that is missing.
    """
    levels = {"level": range(count(tensors, r"heads\.(\d+)\."))}
    params = to_ours(tensors, HEADS, levels)
    return params, to_ours(tensors, VECTORS, levels, k=params["second"]["kernel"].shape[1])


def head_tensors(params: Mapping) -> dict[str, np.ndarray]:
    """Heads, or their gradients, under the published names."""
    return to_published(params, HEADS, {"level": range(len(params["last"]["bias"]))})


def vector_tensors(vectors: Mapping) -> dict[str, np.ndarray]:
    """Vectors of the spectral norms under the published names."""
    return to_published(vectors, VECTORS, {"level": range(len(vectors["last"]["u"]))})
