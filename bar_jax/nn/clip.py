"""CLIP (Radford et al. 2021): images and texts in one space, for the CLIP score."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bar_jax.nn.imagenet import normalized
from bar_jax.nn.linear import NORMAL_02, named
from bar_jax.nn.resize import resize
from bar_jax.nn.vit import ViT, patchify
from bar_jax.runtime.mesh import constrain_batch

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of R, G, B in [0, 1], over CLIP's training set
STD = (0.26862954, 0.26130258, 0.27577711)
NORM_EPS = 1e-5


class CLIP(nn.Module):
    """A ViT for images and a causal transformer for texts; the sizes by default are ViT-L/14.

    All products are of whole float32 numbers, on every kind of device.

    Attributes:
      width, depth, heads, patch_size: sizes of the ViT.
      image_size: px a side that images are resized to.
      text_width, text_depth, text_heads: sizes of the transformer for texts.
      vocabulary, context: tokens that there are, and tokens of a text.
      features: size of the common space.
    """

    width: int = 1024
    depth: int = 24
    heads: int = 16
    patch_size: int = 14
    image_size: int = 224
    text_width: int = 768
    text_depth: int = 12
    text_heads: int = 12
    vocabulary: int = 49408
    context: int = 77
    features: int = 768

    def setup(self):
        shared = {"gelu": "quick", "norm_eps": NORM_EPS}
        self.patch_embedding = _projection(self.width)
        self.vision = ViT(
            self.width,
            self.depth,
            self.heads,
            4 * self.width,
            class_token=True,
            pre_norm=True,
            **shared,
        )
        self.image_projection = _projection(self.features)
        self.token_embedding = self.param(
            "token_embedding", named(NORMAL_02, None, "embed"), (self.vocabulary, self.text_width)
        )
        self.text = ViT(
            self.text_width,
            self.text_depth,
            self.text_heads,
            4 * self.text_width,
            causal=True,
            **shared,
        )
        self.text_projection = _projection(self.features)

    def __call__(self, images: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features of images and of texts: see `image_features` and `text_features`."""
        return self.image_features(images), self.text_features(tokens)

    def image_features(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] in [0, 255] -> [B, features] float32, not normalised.

        The shorter side is resized as Pillow does (bicubic, antialiased, to 8 bits), then the
        middle is cut out.
        """
        with jax.default_matmul_precision("highest"):
            images = self._square(constrain_batch(images))
            patches = patchify(normalized(images / 127.5 - 1, MEAN, STD), self.patch_size)
            grid = (self.image_size // self.patch_size,) * 2
            return self.image_projection(self.vision(self.patch_embedding(patches), grid)[:, 0])

    def image_outputs(self, images: jax.Array) -> dict[str, jax.Array]:
        """`image_features` by their name, as networks that measure return them."""
        return {"image": self.image_features(images)}

    def text_features(self, tokens: jax.Array) -> jax.Array:
        """Token ids [B, context] -> [B, features] float32, not normalised.

        A text's features stand at its end token, the highest of all ids; what follows it is not
        seen.
        """
        with jax.default_matmul_precision("highest"):
            x = self.text(self.token_embedding[tokens], (1, self.context))
            end = jnp.argmax(tokens, axis=1)
            return self.text_projection(x[jnp.arange(len(x)), end])

    def text_states(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Token ids [B, T], T at most `context` -> hidden states [B, T, text_width] float32.

        They have passed the last norm and no projection.

        Args:
          mask: bool [B, T], False where a text is filled up, which is at its end: nothing looks
            there, and those states mean nothing.
        """
        del mask
        length = tokens.shape[1]
        tokens = jnp.pad(tokens, ((0, 0), (0, self.context - length)))
        with jax.default_matmul_precision("highest"):
            return self.text(self.token_embedding[tokens], (1, self.context))[:, :length]

    def _square(self, images: jax.Array) -> jax.Array:
        size = self.image_size
        sides = images.shape[1:3]
        rows, columns = (int(size * side / min(sides)) for side in sides)
        images = resize(images, (rows, columns), "bicubic_8bit")
        top, left = round((rows - size) / 2), round((columns - size) / 2)
        return images[:, top : top + size, left : left + size]


def _projection(features: int) -> nn.Dense:
    return nn.Dense(features, use_bias=False, kernel_init=named(NORMAL_02, None, "embed"))
