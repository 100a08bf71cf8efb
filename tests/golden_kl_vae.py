"""Golden cases of the published KL-16. Published images and latents are [B, C, h, w]."""

import jax
import jax.numpy as jnp
from einops import rearrange

from bar_jax.pretrained.kl_vae import params_of
from bar_jax.tokenizers.kl_vae import KLVAE, kl_divergence, posterior, sample_posterior


def kl16_vae(config, given, weights):
    """Moments, a sample of the posterior for given noise, its latents, and the way back."""
    nominal = {config["resolution"] // 2**level for level in range(len(config["ch_mult"]))}
    assert nominal.isdisjoint(config["decoder_attn_resolutions"]), "a published decoder has none"
    vae = KLVAE(
        image_size=config["image_size"],
        width=config["ch"],
        multipliers=tuple(config["ch_mult"]),
        blocks=config["num_res_blocks"],
        channels=config["embed_dim"],
        attention_levels=tuple(
            level
            for level in range(len(config["ch_mult"]))
            if config["resolution"] // 2**level in config["encoder_attn_resolutions"]
        ),
        scale=config["latent_scale"],
    )
    side = vae.grid[0]
    flat = lambda x: rearrange(x, "b c h w -> b (h w) c")  # noqa: E731
    square = lambda x: rearrange(x, "b (h w) c -> b c h w", h=side)  # noqa: E731

    @jax.jit
    def run(params, image, noise):
        apply = lambda x, method: vae.apply({"params": params}, x, method=method)  # noqa: E731
        moments = apply(rearrange(image, "b c h w -> b h w c"), "encode")
        sample = sample_posterior(moments, flat(noise))
        latents = sample * vae.scale
        return {
            "moments": square(moments),
            "logvar": square(posterior(moments)[1]),
            "sample": square(sample),
            "latents": square(latents),
            "kl": kl_divergence(moments),
            "recon": rearrange(apply(latents, "decode"), "b h w c -> b c h w"),
        }

    params = jax.tree.map(jnp.asarray, params_of(weights, vae))
    return run(params, given["image"], given["noise"])
