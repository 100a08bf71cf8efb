"""MAR's diffusion head: a small MLP that takes the noise out of one token at a time.

Its condition is the transformer's vector z of the token (Li et al. 2024, Autoregressive Image
Generation without Vector Quantization). Where that paper is silent, this follows what the
published weights need.
"""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bar_jax.heads import gaussian_diffusion as diffusion
from bar_jax.heads.kind import HeadKind
from bar_jax.nn.decoding import layers
from bar_jax.nn.guidance import guided
from bar_jax.nn.linear import XAVIER, linear
from bar_jax.nn.time import TimeEmbedding
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.mesh import constrain_batch

# Rows that one product modulates, see `sample`: enough that its weights are read from memory for
# a reason, few enough that the vectors stay in the cache.
ROWS_AHEAD = 128


class Draws(flax.struct.PyTreeNode):
    """Random draws of tokens [..., R] at R noise levels each.

    Attributes:
      times: [...] int32 in 0..999.
      noise: [..., d] standard normal.
    """

    times: jax.Array
    noise: jax.Array


class Denoised(flax.struct.PyTreeNode):
    """What training makes of noisy tokens, all float32.

    Attributes:
      loss: [...] mean squared error of the noise plus the variational term.
      variational: [...] that term alone, in bits.
      clean: [..., d] the token recovered from the predicted noise.
    """

    loss: jax.Array
    variational: jax.Array
    clean: jax.Array


class DiffusionBlock(nn.Module):
    """Modulated LayerNorm, a two-layer MLP, gated residual."""

    width: int
    dtype: jnp.dtype

    def setup(self):
        dense = functools.partial(linear, kernel_init=XAVIER, dtype=self.dtype)
        zeros = nn.initializers.zeros
        self.adaln = dense((3, self.width), ("embed", None, None), kernel_init=zeros)
        self.norm = nn.LayerNorm(1e-6)
        self.mlp_in = dense(self.width, ("embed", "mlp"))
        self.mlp_out = dense(self.width, ("mlp", "embed"))

    def __call__(self, x: jax.Array, condition: jax.Array) -> tuple[jax.Array, None]:
        """x, condition [M, W] -> [M, W]; the second value is what `nn.scan` stacks, nothing."""
        return self.modulated(constrain_batch(x), self.modulate(condition)), None

    def modulate(self, condition: jax.Array) -> jax.Array:
        """[..., W], SiLU already taken -> [..., 3, W]: shift, scale, gate."""
        return self.adaln(condition)

    def modulated(self, x: jax.Array, modulation: jax.Array) -> jax.Array:
        """x [M, W], modulation [M, 3, W] -> [M, W]."""
        shift, scale, gate = (modulation[:, i] for i in range(3))
        h = self.norm(x) * (1 + scale) + shift
        return x + gate * self.mlp_out(nn.silu(self.mlp_in(h)))


class DiffusionHead(nn.Module):
    """The noise in a token, and the variance of the step back.

    Attributes:
      channels: d, numbers of a token.
      width, depth: of the MLP; published 1024 x 6 (MAR-B), 1280 x 8 (L), 1536 x 12 (H).
      timesteps_per_token: R, noise levels that a token is trained at in a step.
      remat: keep of a block its input alone for the gradient, see `nn.remat`.
    """

    channels: int
    width: int
    depth: int
    timesteps_per_token: int = 4
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        dense = functools.partial(linear, kernel_init=XAVIER, dtype=self.dtype)
        zeros = nn.initializers.zeros
        self.time_embedding = TimeEmbedding(self.width, dtype=self.dtype)
        self.condition_proj = dense(self.width, (None, "embed"))
        self.in_proj = dense(self.width, (None, "embed"))
        self.blocks = layers(self, DiffusionBlock, (self.width, self.dtype), self.depth)
        self.out_adaln = dense((2, self.width), ("embed", None, None), kernel_init=zeros)
        self.out_norm = nn.LayerNorm(1e-6, use_bias=False, use_scale=False)
        self.out_proj = dense((2, self.channels), ("embed", None, None), kernel_init=zeros)

    def __call__(self, x: jax.Array, times: jax.Array, z: jax.Array) -> jax.Array:
        """One evaluation of the network.

        Args:
          x: [M, d] noisy tokens.
          times: [M] integers in 0..999.
          z: [M, D], the transformer's vector for each token.

        Returns:
          [M, 2, d] float32: the noise, and the fraction of the log-variance (-1 to 1, not clamped).
        """
        # The projection's kernel is cut along its outputs: without the constraint the compiler
        # gathers the rows of all devices.
        condition = constrain_batch(self.embed_condition(z))
        condition = nn.silu(self.time_embedding(times) + condition)
        x, _ = self.blocks(self._embed(x), condition)
        return self._output(x, self.out_adaln(condition))

    def _embed(self, x: jax.Array) -> jax.Array:
        """[M, d] -> [M, W] float32, as is all that blocks add to."""
        return self.in_proj(x.astype(self.dtype)).astype(jnp.float32)

    def embed_time(self, times: jax.Array) -> jax.Array:
        """[...] -> [..., W]."""
        return self.time_embedding(times)

    def embed_condition(self, z: jax.Array) -> jax.Array:
        """[..., D] -> [..., W]."""
        return self.condition_proj(z.astype(self.dtype))

    def _output(self, x: jax.Array, modulation: jax.Array) -> jax.Array:
        """x [M, W], modulation [M, 2, W]: shift, scale -> [M, 2, d] float32."""
        x = self.out_norm(x) * (1 + modulation[:, 1]) + modulation[:, 0]
        return self.out_proj(x).astype(jnp.float32)

    @nn.nowrap
    def draws(self, key: jax.Array, tokens: int, shared_time: bool = False) -> Draws:
        """Draws of one example's tokens: times [R, N] uniform, and noise [R, N, d].

        Args:
          shared_time: one time for all tokens of a draw.
        """
        shape = (self.timesteps_per_token, tokens)
        time_key, noise_key = jax.random.split(key)
        times = jax.random.randint(
            time_key, (shape[0], 1) if shared_time else shape, 0, diffusion.STEPS
        )
        noise = jax.random.normal(noise_key, (*shape, self.channels))
        return Draws(jnp.broadcast_to(times, shape), noise)

    def denoise(self, z: jax.Array, clean: jax.Array, draws: Draws) -> Denoised:
        """Training: takes away noise that was added.

        Args:
          z: [M, D].
          clean: [M, d] tokens.
          draws: [M].
        """
        noisy = diffusion.add_noise(clean, draws.noise, draws.times)
        out = self(noisy, draws.times, z)
        eps, fraction = out[:, 0], out[:, 1]
        bits = diffusion.variational_bits(eps, fraction, clean, noisy, draws.times)
        error = jnp.mean((draws.noise - eps) ** 2, axis=-1)
        return Denoised(error + bits, bits, diffusion.recover(noisy, eps, draws.times))

    # Sampling, on parameters that `nn.decoding.decoding_params` has laid out.

    def modulations(self, condition: jax.Array) -> tuple[jax.Array, ...]:
        """Every layer's adaLN vectors: [..., W] -> an array [..., 3, W] for every layer.

        The last, [..., 2, W], is for the output.
        """
        condition = nn.silu(condition)
        return *(block.modulate(condition) for block in self.blocks), self.out_adaln(condition)

    def evaluate(self, x: jax.Array, modulations: tuple[jax.Array, ...]) -> jax.Array:
        """x [B, d] -> [M, 2, d]; M = B, or 2 B where the same tokens meet two conditions."""
        x = self._embed(x)
        x = jnp.tile(x, (modulations[0].shape[0] // x.shape[0], 1))
        *blocks, out = modulations
        for block, modulation in zip(self.blocks, blocks, strict=True):
            x = block.modulated(x, modulation)
        return self._output(x, out)


def sample(
    head: DiffusionHead,
    params: dict,
    z: jax.Array,
    *,
    steps: int,
    guidance: jax.Array | float | None,
    temperature: jax.Array | float,
    first: jax.Array,
    noise: jax.Array,
    clip: float = 0.0,
) -> jax.Array:
    """Draws tokens: `steps` steps from noise to a token each.

    adaLN vectors depend on z and the time alone; those of several steps come from one product, so
    that more than half of the head's weights are not read at every step.

    Args:
      params: of the head, laid out by `nn.decoding.decoding_params`.
      z: [B, D]; with guidance [2 B, D], the unconditional half last.
      steps: T, out of the 1000 of training.
      guidance: scale s of u + s (c - u) on the predicted noise; None for no guidance. The variance
        is the conditional half's.
      temperature: what the noise of every step is multiplied by.
      first: [B, d] standard normal, where the tokens start.
      noise: [T, B, d] standard normal, in the order in which it is used; the last is not.
      clip: bound of the numbers of a recovered token, see `gaussian_diffusion.moments`.

    Returns:
      [B, d] float32.
    """
    apply = functools.partial(head.apply, {"params": params})
    table, rows = diffusion.tables(steps), z.shape[0]
    time = apply(table.timesteps, method=head.embed_time)
    condition = apply(z, method=head.embed_condition)
    # The last step draws nothing.
    scale = temperature * jnp.where(jnp.arange(steps) == 0, 0.0, 1.0)
    of_steps = {"time": time, "scale": scale, "rows": diffusion.step_rows(table)}
    of_steps = jax.tree.map(lambda row: jnp.asarray(row)[::-1], of_steps) | {"noise": noise}
    ahead = max(
        n for n in range(1, steps + 1) if steps % n == 0 and n * rows <= max(ROWS_AHEAD, rows)
    )
    of_steps = jax.tree.map(lambda x: x.reshape(-1, ahead, *x.shape[1:]), of_steps)

    def several(x, of_steps):
        at_times = of_steps["time"][:, None] + condition[None]
        return jax.lax.scan(one, x, (of_steps, apply(at_times, method=head.modulations)))[0], None

    def one(x, step):
        here, modulations = step
        out = apply(x, modulations, method=head.evaluate)
        eps, fraction = guided(out[:, 0], guidance), out[: x.shape[0], 1]
        moments = diffusion.moments(eps, fraction, x, here["rows"], clip)
        spread = jnp.exp(0.5 * moments.log_variance) * here["noise"]
        return moments.mean + here["scale"] * spread, None

    return jax.lax.scan(several, first, of_steps)[0]


def _make(config: ConfigDict, channels: int, remat: bool) -> DiffusionHead:
    head = config.model.head
    return DiffusionHead(
        channels=channels,
        width=head.width,
        depth=head.depth,
        timesteps_per_token=head.timesteps_per_token,
        remat=remat,
        dtype=jnp.dtype(config.dtype),
    )


def _check(config: ConfigDict, channels: int) -> None:
    del channels
    if config.sample.steps > diffusion.STEPS:
        expected = f"1 to {diffusion.STEPS}, the noise levels of training"
        raise InputError("sample.steps", f"{config.sample.steps}", expected)


KIND = HeadKind(
    make=_make,
    writes_bits=False,
    fields=("width", "depth", "timesteps_per_token"),
    sampling_fields=("steps", "clip"),
    check=_check,
)
