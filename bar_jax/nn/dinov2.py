"""DINOv2's ViT (Oquab et al. 2024), whose features FD-DINOv2 compares (Stein et al. 2023)."""

import flax.linen as nn
import jax

from bar_jax.nn.imagenet import normalized
from bar_jax.nn.linear import linear
from bar_jax.nn.resize import resize
from bar_jax.nn.vit import ViT, patchify
from bar_jax.runtime.mesh import constrain_batch


class DINOv2(nn.Module):
    """Features of whole images; the sizes by default are ViT-L/14, without registers.

    All products are of whole float32 numbers, on every kind of device.

    Attributes:
      width, depth, heads, mlp_width, patch_size: sizes of the ViT.
      image_size: px a side that images are resized to.
    """

    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_width: int = 4096
    patch_size: int = 14
    image_size: int = 224

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """Images [B, H, W, 3] in [0, 255] -> `class_token` [B, width] float32, after the last norm.

        Images are resized as Pillow does (bicubic, antialiased, to 8 bits), to a square whatever
        their sides, and normalised with ImageNet's colours.
        """
        with jax.default_matmul_precision("highest"):
            images = resize(constrain_batch(images), self.image_size, "bicubic_8bit")
            patches = patchify(normalized(images / 127.5 - 1), self.patch_size)
            tokens = linear(self.width, (None, "embed"), name="patch_embedding")(patches)
            vit = ViT(
                self.width,
                self.depth,
                self.heads,
                self.mlp_width,
                class_token=True,
                layer_scale=True,
                name="vit",
            )
            return {"class_token": vit(tokens, (self.image_size // self.patch_size,) * 2)[:, 0]}
