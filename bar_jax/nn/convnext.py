"""ConvNeXt (Liu et al. 2022), a classifier: its logits are compared as a perceptual loss."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bar_jax.nn.linear import NORMAL_02, linear, named
from bar_jax.nn.mlp import GeluMLP
from bar_jax.runtime.mesh import constrain_batch

NORM_EPS = 1e-6


class ConvNeXtBlock(nn.Module):
    """x + scale * MLP(norm(7x7 depthwise convolution of x)), hidden width 4 C, exact GELU."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        """[B, h, w, C] -> the same, and what `nn.scan` stacks: nothing."""
        x = constrain_batch(x)
        channels = x.shape[-1]
        # Whole on every device: for a kernel that is cut along the channels, the compiler would
        # cut the images so too, and send them all to and fro; 49 weights a channel are little.
        h = nn.Conv(
            channels,
            (7, 7),
            feature_group_count=channels,
            dtype=self.dtype,
            kernel_init=named(NORMAL_02, None, None, None, None),
            bias_init=named(nn.initializers.zeros, None),
            name="depthwise",
        )(x)
        h = nn.LayerNorm(NORM_EPS, dtype=self.dtype, name="norm")(h)
        h = GeluMLP(4 * channels, dtype=self.dtype, name="mlp")(h)
        scale = self.param("scale", named(nn.initializers.constant(1e-6), "embed"), (channels,))
        return x + scale.astype(self.dtype)[None, None, None] * h, None


class ConvNeXt(nn.Module):
    """4x4 patches, stages of blocks with halvings of the grid in between, mean, linear.

    The sizes by default are ConvNeXt-S.

    Attributes:
      dims, depths: channels and blocks of each stage.
    """

    dims: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 27, 3)
    num_classes: int = 1000
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalised images [B, H, W, 3] -> logits [B, num_classes] float32."""
        x = x.astype(self.dtype)
        for stage, (channels, depth) in enumerate(zip(self.dims, self.depths, strict=True)):
            if stage:  # norm, then halve
                x = self._norm(f"down{stage}_norm")(x)
                x = self._patches(channels, 2, f"down{stage}")(x)
            else:
                x = self._patches(channels, 4, "stem")(x)
                x = self._norm("stem_norm")(x)
            blocks = nn.scan(
                ConvNeXtBlock,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=depth,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x, _ = blocks(self.dtype, name=f"stage{stage}")(x, None)
        x = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        x = nn.LayerNorm(NORM_EPS, name="norm")(x)
        return linear(self.num_classes, ("embed", None), name="logits")(x)

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(NORM_EPS, dtype=self.dtype, name=name)

    def _patches(self, channels: int, size: int, name: str) -> nn.Conv:
        """A linear map of patches that do not overlap."""
        return nn.Conv(
            channels,
            (size, size),
            strides=(size, size),
            padding="VALID",
            dtype=self.dtype,
            kernel_init=named(NORMAL_02, None, None, None, "embed"),
            bias_init=named(nn.initializers.zeros, "embed"),
            name=name,
        )
