"""What hosts with a diffusion head have in common in training."""

import jax
import jax.numpy as jnp
from einops import rearrange

from bar_jax.generators.prediction import Prediction
from bar_jax.heads.diffusion import DiffusionHead, Draws
from bar_jax.heads.gaussian_diffusion import signal_to_noise


def predict_tokens(
    head: DiffusionHead,
    z: jax.Array,
    y: jax.Array,
    draws: Draws,
    hidden: jax.Array | None = None,
) -> Prediction:
    """The head's prediction of a sequence, each token at R noise levels.

    Args:
      z: [B, N, D], the head's condition for each token.
      y: [B, N, d] tokens.
      draws: times [B, R, N] and noise [B, R, N, d].
      hidden: [B, N] bool, False where a token was given and does not count; None: all count.

    Returns:
      See `Prediction`. `snr` is the mean over the tokens: each one's if they share their time, and
      else of no use.
    """
    shape = draws.times.shape
    y, hidden = y.astype(jnp.float32), jnp.ones(y.shape[:2], bool) if hidden is None else hidden
    copies = lambda x: jnp.broadcast_to(x[:, None], (*shape, x.shape[-1]))
    flat = lambda x: x.reshape(-1, *x.shape[3:])
    rows = head.denoise(flat(copies(z)), flat(copies(y)), jax.tree.map(flat, draws))
    rows = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), rows)
    total = lambda x: jnp.sum(jnp.where(hidden[:, None], x, 0), axis=(1, 2))
    clean = jnp.where(hidden[:, None, :, None], rows.clean, y[:, None])
    return Prediction(
        loss=total(rows.loss),
        weight=shape[1] * jnp.sum(hidden, axis=1, dtype=jnp.float32),
        variational_loss=total(rows.variational),
        clean=rearrange(clean, "b r n d -> r b n d"),
        snr=jnp.mean(signal_to_noise(draws.times), axis=2).T,
    )
