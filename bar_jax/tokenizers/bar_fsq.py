"""BAR-FSQ: images to tokens of k bits and back (masked-bit paper, sections 3.3 and 4.1)."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from ml_collections import ConfigDict

from bar_jax.nn.linear import linear, named
from bar_jax.nn.vit import ViT, patchify, unpatchify
from bar_jax.runtime.arguments import check_bits, check_heads_divide, check_numbers
from bar_jax.runtime.errors import InputError
from bar_jax.tokenizers.fsq import Quantizer, bits_to_codes, codes_to_bits, quantize_centered
from bar_jax.tokenizers.kind import Fields, TokenizerKind

# Where a path of parameters begins -> the group that it is trained with; the longest counts.
GROUPS = {
    ("patch_embedding",): "embeddings",
    ("encoder_vit", "position_embedding"): "embeddings",
    ("encoder_vit",): "encoder",
    ("quantizer",): "quantizer",
    ("basis",): "basis",
    ("basis_gains",): "quantizer",
    ("decoder_vit",): "decoder",
    ("to_pixels",): "decoder",
    ("pixel_conv",): "decoder",
    ("feature_predictor",): "decoder",
}


def parameter_group(path: Sequence[str]) -> str:
    """The group of a parameter: embeddings, encoder, quantizer, basis or decoder.

    The embeddings are what an encoder that starts from SigLIP2 keeps frozen.

    Args:
      path: keys of the tree of parameters: `("encoder_vit", "blocks", "qkv", "kernel")`.
    """
    return GROUPS.get(tuple(path[:2])) or GROUPS[tuple(path[:1])]


class Reconstruction(NamedTuple):
    """What a tokenizer is trained on.

    Attributes:
      images: [B, H, W, 3] float32, near [-1, 1] but not clipped.
      codes: {-1, +1} [B, N, k] float32, with a straight-through gradient.
      predicted_features: the decoder's guess of SigLIP2's features of the image, [B, N, D] float32;
        None without a predictor.
    """

    images: jax.Array
    codes: jax.Array
    predicted_features: jax.Array | None


class FeaturePredictor(nn.Module):
    """Three linear layers with SiLU between them: width -> hidden -> hidden -> outputs."""

    hidden: int
    outputs: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, width] -> [B, N, outputs]."""
        x = nn.silu(linear(self.hidden, ("embed", "mlp"), dtype=self.dtype, name="first")(x))
        x = nn.silu(linear(self.hidden, ("mlp", "embed"), dtype=self.dtype, name="second")(x))
        return linear(self.outputs, ("embed", None), dtype=self.dtype, name="third")(x)


class BarFSQ(nn.Module):
    """ViT encoder, binary FSQ, ViT decoder.

    Images are RGB in [-1, 1], [B, H, W, 3] with H = W = image_size; tokens are bits {0, 1},
    [B, N, k] uint8 with N = (image_size / patch_size)^2 in raster order.

    Attributes:
      bits: k, bits of a token.
      encoder, decoder: sizes (width, depth, heads, mlp_width) of the two transformers.
      position_grid: side of the encoder's table of positions, resized to the grid of tokens, so
        that it fits any image_size; 0: that grid itself. The decoder's table fits one grid.
      predictor_layer: layer of the decoder, from 0, whose output the feature predictor reads.
      predictor_width: hidden width of the feature predictor; 0: there is none.
      centered_bits: see `Quantizer.centered`.
      remat: keep of the transformers' blocks their inputs alone for the gradient, see `nn.remat`.
    """

    image_size: int
    patch_size: int
    bits: int
    encoder: Mapping[str, int]
    decoder: Mapping[str, int]
    position_grid: int = 0
    predictor_layer: int = 0
    predictor_width: int = 0
    centered_bits: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return (self.image_size // self.patch_size,) * 2

    @property
    def length(self) -> int:
        """N, tokens of an image."""
        return self.grid[0] * self.grid[1]

    def setup(self):
        width = self.decoder["width"]
        self.patch_embedding = linear(self.encoder["width"], (None, "embed"), dtype=self.dtype)
        # SigLIP2's vision tower: tanh-GELU, eps 1e-6, no class token.
        self.encoder_vit = ViT(
            **self.encoder,
            position_grid=(self.position_grid,) * 2 if self.position_grid else None,
            gelu="tanh",
            remat=self.remat,
            dtype=self.dtype,
        )
        self.quantizer = Quantizer(
            self.bits, inputs=self.encoder["width"], outputs=width, centered=self.centered_bits
        )
        self.decoder_vit = ViT(
            **self.decoder,
            class_token=True,
            pre_norm=True,
            keep=(self.predictor_layer,) if self.predictor_width else (),
            norm_eps=1e-5,
            table_init=nn.initializers.normal(width**-0.5),
            remat=self.remat,
            dtype=self.dtype,
        )
        self.to_pixels = linear(self.patch_size**2 * 3, ("embed", None), dtype=self.dtype)
        # Smooths the seams between patches; in float32, like everything that meets a pixel.
        self.pixel_conv = nn.Conv(
            3, (3, 3), kernel_init=named(nn.initializers.normal(0.02), None, None, None, None)
        )
        if self.predictor_width:
            self.feature_predictor = FeaturePredictor(
                self.predictor_width, self.encoder["width"], self.dtype
            )

    def features(self, images: jax.Array) -> jax.Array:
        """The encoder's features after its last norm, [B, N, D] float32, of images [B, H, W, 3].

        With SigLIP2's own weights, a tree {patch_embedding, encoder_vit}, they are what the feature
        predictor aims at.
        """
        check_numbers("images", images, "B", self.image_size, self.image_size, 3)
        embedded = self.patch_embedding(patchify(images, self.patch_size))
        return self.encoder_vit(embedded, self.grid).astype(jnp.float32)

    def predict_features(self, x: jax.Array) -> jax.Array:
        """The feature predictor: output of a decoder's layer [B, N, width] -> [B, N, D] float32."""
        return self.feature_predictor(x).astype(jnp.float32)

    def project(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] -> latents [B, N, k] float32, centred, before they are quantised."""
        return self.quantizer.project(self.features(images))

    def quantize(self, z: jax.Array) -> jax.Array:
        """Latents [B, N, k] -> codes {-1, +1} [B, N, k] with a straight-through gradient."""
        return quantize_centered(z)

    def expand(self, codes: jax.Array) -> jax.Array:
        """Codes [B, N, k] -> the decoder's input [B, N, width]; 0 is a token that is not known."""
        return self.quantizer.expand(codes)

    def render(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """The decoder: expanded codes [B, N, width] -> images and the feature predictor's input.

        Returns:
          Images [B, H, W, 3] float32, near [-1, 1] but not clipped; and the output of the layer
          that the feature predictor reads, [B, N, width], or None.
        """
        rows, columns = self.grid
        chex.assert_shape(tokens, (None, rows * columns, self.decoder["width"]))
        x, inner = self.decoder_vit(tokens, self.grid), None
        if self.predictor_width:
            x, kept = x
            inner = kept[0, :, 1:]
        patches = self.to_pixels(x[:, 1:]).astype(jnp.float32)
        return self.pixel_conv(unpatchify(patches, self.grid, self.patch_size)), inner

    def __call__(self, images: jax.Array) -> Reconstruction:
        """Images [B, H, W, 3] -> what training compares with them."""
        codes = self.quantize(self.project(images))
        return Reconstruction(*self._from_codes(codes))

    def _from_codes(self, codes):
        rendered, inner = self.render(self.expand(codes))
        predicted = None if inner is None else self.predict_features(inner)
        return rendered, codes, predicted

    def encode(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] in [-1, 1] -> bits {0, 1} [B, N, k] uint8."""
        return codes_to_bits(self.quantize(self.project(images)))

    @nn.nowrap
    def latents(self, codes: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """What generators model, for every tokenizer: here the bits [B, N, k] that are cached."""
        del keys  # nothing is random
        return codes

    def decode(self, bits: jax.Array) -> jax.Array:
        """Bits -> images [B, H, W, 3] float32, near [-1, 1] but not clipped.

        Args:
          bits: {0, 1} [B, m, k], m from 1 to N; the tokens that are missing count as not known.
        """
        check_bits(bits, "B", "m", self.bits)
        missing = self.length - bits.shape[1]
        if not 0 <= missing < self.length:
            raise InputError("bits", f"{bits.shape[1]} tokens", f"1 to {self.length}")
        codes = jnp.pad(bits_to_codes(bits), ((0, 0), (0, missing), (0, 0)))
        return self.render(self.expand(codes))[0]

    def from_prefix(self, codes: jax.Array, lengths: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] decoded from the first tokens of each, the rest being not known.

        Args:
          codes: {-1, +1} [B, N, k].
          lengths: [B] in 1..N, how many tokens of each image.
        """
        known = jnp.arange(codes.shape[1])[None] < lengths[:, None]
        return self.render(self.expand(codes * known[..., None]))[0]


SIZES = ("width", "depth", "heads", "mlp_width")  # of a ViT
# Fields that tokens do not depend on, or that follow from the parameters.
TRAINING_ALONE = (
    ("encoder", "kind"), ("encoder", "position_grid"),
    ("decoder", "predictor_layer"), ("decoder", "predictor_width"),
)  # fmt: skip


def make(config: ConfigDict, remat: bool, module: type = BarFSQ, **options) -> BarFSQ:
    """The module that a config describes, of this class or one that extends it."""
    tokenizer = config.model.tokenizer
    sizes = lambda part: FrozenDict({name: part[name] for name in SIZES})
    return module(
        image_size=config.data.image_size,
        patch_size=tokenizer.patch_size,
        bits=tokenizer.bits,
        encoder=sizes(tokenizer.encoder),
        decoder=sizes(tokenizer.decoder),
        position_grid=tokenizer.encoder.position_grid,
        predictor_layer=tokenizer.decoder.predictor_layer,
        predictor_width=tokenizer.decoder.predictor_width,
        centered_bits=tokenizer.centered_bits,
        remat=remat,
        dtype=jnp.dtype(config.dtype),
        **options,
    )


def _named_by(fields: Fields) -> list[Fields]:
    """Without the decoder, so that tokens stay those of a tokenizer whose decoder is tuned."""
    named = {name: value for name, value in fields.items() if name != "kl"}
    for part, name in TRAINING_ALONE:
        named[part] = {key: value for key, value in named[part].items() if key != name}
    return [{name: value for name, value in named.items() if name != "decoder"}, named]


def _check(config: ConfigDict) -> None:
    tokenizer = config.model.tokenizer
    for name in ("encoder", "decoder"):
        part = tokenizer[name]
        check_heads_divide(f"model.tokenizer.{name}.heads", part.width, part.heads)
    decoder = tokenizer.decoder
    if decoder.predictor_width and decoder.predictor_layer >= decoder.depth:
        raise InputError(
            "model.tokenizer.decoder.predictor_layer",
            f"{decoder.predictor_layer}",
            f"0 to {decoder.depth - 1}: the decoder has {decoder.depth} layers",
        )


def _count_parameters(config: ConfigDict, params: Mapping) -> dict[str, int]:
    """Parameters by what happens to them, and by use.

    An encoder that starts from SigLIP2 keeps the embeddings frozen, and a frozen copy of the whole
    gives the features to align with; SigLIP2's pooling head, which nothing uses, is in the
    published files and in their count. The quantizer is counted whole for encoding, as it is there;
    a basis counts for both.
    """
    groups = dict.fromkeys(("embeddings", "encoder", "quantizer", "basis", "decoder"), 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        groups[parameter_group([key.key for key in path])] += math.prod(leaf.shape)
    count = lambda tree: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    unchanged = {}
    if config.model.tokenizer.encoder.kind == "siglip2":
        unchanged = {
            "tokenizer_frozen_embeddings": groups["embeddings"],
            "tokenizer_alignment_target": groups["encoder"],
            "tokenizer_pooling_head": _pooling_head(config.model.tokenizer.encoder),
        }
    trainable = sum(groups.values()) - unchanged.get("tokenizer_frozen_embeddings", 0)
    decoder_alone = config.train_tokenizer.stage == "decoder_finetune"
    both = [part for part in params if part.startswith("basis")]
    return {
        "tokenizer_trainable": groups["decoder"] if decoder_alone else trainable,
        **unchanged,
        "tokenizer_total": trainable + sum(unchanged.values()),
        "tokenizer_encoding": sum(groups.values()) - groups["decoder"],
        "tokenizer_decoding": groups["decoder"]
        - count(params.get("feature_predictor", {}))
        + sum(count(params[part]) for part in both)
        + count(params["quantizer"]["out_proj"]),
    }


def _pooling_head(encoder: ConfigDict) -> int:
    """Parameters of SigLIP2's pooling head: a query, attention, a LayerNorm and an MLP."""
    width, hidden = encoder.width, encoder.mlp_width
    attention = 4 * (width * width + width)
    mlp = 2 * width * hidden + hidden + width
    return width + attention + 2 * width + mlp


KIND = TokenizerKind(
    make=make,
    makes_bits=True,
    width=lambda config: config.model.tokenizer.bits,
    cached_as=lambda config: ("bits", config.model.tokenizer.bits),
    fields=("bits", "centered_bits", "encoder.", "decoder."),
    sampling_fields=("order",),
    group=parameter_group,
    decoder=tuple(path[0] for path, group in GROUPS.items() if group == "decoder"),
    named_by=_named_by,
    count_parameters=_count_parameters,
    check=_check,
)
