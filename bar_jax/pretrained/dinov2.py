"""DINOv2's ViT: the names of torch.hub's files, and their arrays in our layout."""

import math
from collections.abc import Mapping

import numpy as np

from bar_jax.nn.dinov2 import DINOv2
from bar_jax.nn.resize import bicubic_weights
from bar_jax.pretrained.layout import Layout, count, layer_norm, linear, same, to_ours
from bar_jax.pretrained.outside import Network

# The published model adds it to the rows and columns that its positions are resized to, so that
# its places are not quite those of a resizing to the same grid.
OFFSET = 0.1

_BLOCK = "blocks.{layer}"
LAYOUT: Layout = {
    "patch_embedding/kernel": ("patch_embed.proj.weight", "d c p1 p2 -> (p1 p2 c) d"),
    **same("patch_embedding/bias", "patch_embed.proj.bias"),
    "vit/class_embedding": ("cls_token", "1 1 d -> d"),
    "vit/position_embedding": ("pos_embed", "1 place d -> place d"),
    **layer_norm("vit/blocks/attention_norm", f"{_BLOCK}.norm1"),
    **linear("vit/blocks/qkv", f"{_BLOCK}.attn.qkv", outputs="three heads c"),
    **linear("vit/blocks/out", f"{_BLOCK}.attn.proj", inputs="heads c"),
    **same("vit/blocks/attention_scale", f"{_BLOCK}.ls1.gamma"),
    **layer_norm("vit/blocks/mlp_norm", f"{_BLOCK}.norm2"),
    **linear("vit/blocks/mlp/up", f"{_BLOCK}.mlp.fc1"),
    **linear("vit/blocks/mlp/down", f"{_BLOCK}.mlp.fc2"),
    **same("vit/blocks/mlp_scale", f"{_BLOCK}.ls2.gamma"),
    **layer_norm("vit/norm", "norm"),
}


def dinov2_params(tensors: Mapping[str, np.ndarray], *, heads: int = 16, grid: int = 16) -> dict:
    """Parameters of `nn.dinov2.DINOv2` from a state dict of torch.hub's `dinov2_vit*14`.

    The mask token is not read.

    Args:
      heads: of the attention.
      grid: rows and columns of patches that the positions are resized to.

    Raises:
      InputError: naming a tensor that is missing.
    """
    layers = {"layer": range(count(tensors, r"blocks\.(\d+)\."))}
    params = to_ours(tensors, LAYOUT, layers, heads=heads, three=3)
    params["vit"]["position_embedding"] = resize_positions(
        params["vit"]["position_embedding"], grid
    )
    return params


def resize_positions(table: np.ndarray, grid: int) -> np.ndarray:
    """Positions of a square of patches, [1 + M * M, D], for grid x grid: as DINOv2 resizes its own.

    Bicubic (a = -0.75) without antialiasing, by (grid + 0.1) / M. The class token's stays.
    """
    stored = math.isqrt(len(table) - 1)
    if stored == grid:
        return table
    weights = bicubic_weights(stored, grid, stored / (grid + OFFSET))
    square = table[1:].reshape(stored, stored, -1).astype(np.float64)
    resized = np.einsum("ih,hwd,jw->ijd", weights, square, weights, optimize=True)
    resized = resized.reshape(grid * grid, -1).astype(table.dtype)
    return np.concatenate([table[:1], resized])


NETWORK = Network(
    file="dinov2_vitl14_pretrain.pth",
    origin="torch.hub facebookresearch/dinov2, see third_party/dinov2",
    module=DINOv2(),
    importer=dinov2_params,
    manifest="dinov2/dinov2_vitl14.json",
    resize="to 224 px: bicubic, antialiased, rounded to 8 bits",
)
