"""A toy head: each bit of a token by a logistic regression of its own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bar_jax.heads.kind import HeadKind


class Coins(nn.Module):
    """Logits [M, n] of hidden states [M, W]; nothing is random in training."""

    bits: int
    uniforms_per_token = 0

    def setup(self):
        self.logits = nn.Dense(self.bits)

    @nn.nowrap
    def draws(self, uniform: jax.Array) -> None:
        """What `loss` needs of the uniform draws."""
        del uniform

    def loss(self, z, bits, draws, counted=None):
        """Sums over tokens: cross-entropy in nats."""
        del draws
        entropy = jnp.mean(optax.sigmoid_binary_cross_entropy(self.logits(z), bits), axis=-1)
        weight = jnp.ones_like(entropy) if counted is None else counted.astype(entropy.dtype)
        return {"loss": (jnp.sum(weight * entropy), jnp.sum(weight))}

    @nn.nowrap
    def noise_shape(self, schedule: tuple[int, ...]) -> tuple[int, ...]:
        """Uniform draws that a token needs in sampling."""
        del schedule
        return (self.bits,)

    def sample(self, z, guidance, temperature, schedule, uniform):
        """Bits [B, n] uint8, and the logits that they were drawn from."""
        del guidance, schedule
        logits = self.logits(z)
        return (uniform < nn.sigmoid(logits / temperature)).astype(jnp.uint8), logits


KIND = HeadKind(make=lambda config, bits, remat: Coins(bits), writes_bits=True)
