"""The golden cases of MAR and of what surrounds training: functions for `test_golden_basis_hosts`.

Each takes a case's config, its given arrays and its weights, and returns what is compared.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange

from bar_jax.generators import mar_sampler, mask_ratio
from bar_jax.generators.bidirectional import Transformer
from bar_jax.generators.mar import MAR, Draws
from bar_jax.generators.request import Request
from bar_jax.generators.settings import Settings
from bar_jax.heads import diffusion, gaussian_diffusion
from bar_jax.nn.decoding import decoding_params
from bar_jax.pretrained.mar import generator_params, head_params
from bar_jax.training.optimizer import warmup_cosine
from bar_jax.training.step import ema_rate
from tests.golden_gradients import published_gradients


def _head(config):
    return diffusion.DiffusionHead(
        config["token_embed_dim"],
        config["diffloss_w"],
        config["diffloss_d"],
        config["diffusion_batch_mul"],
    )


def _mar(config):
    """The module of a config and the importer of its weights."""
    parts = {
        part: Transformer(
            width=config[f"{part}_embed_dim"],
            depth=config[f"{part}_depth"],
            heads=config[f"{part}_num_heads"],
            mlp_width=int(config["mlp_ratio"] * config[f"{part}_embed_dim"]),
        )
        for part in ("encoder", "decoder")
    }
    module = MAR(
        length=config["seq_len"],
        num_classes=config["class_num"],
        head=_head(config),
        class_repeats=config["buffer_size"],
        mask_ratio_min=config["mask_ratio_min"],
        **parts,
    )
    importer = functools.partial(
        generator_params,
        depths=tuple(part.depth for part in parts.values()),
        heads=tuple(part.heads for part in parts.values()),
        head_depth=config["diffloss_d"],
    )
    return module, importer


def _patches(config, latents):
    """[B, c, H, W] -> tokens [B, L, c p p]."""
    p = config["patch_size"]
    return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)


def _images(config, tokens):
    """The inverse of `_patches`; the grid is square."""
    p, h = config["patch_size"], math.isqrt(config["seq_len"])
    return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=h, p=p, q=p)


def mar_diffloss_net(config, given, tensors):
    """The head's network, for training and as its sampler evaluates it."""
    head, params = _head(config), head_params(tensors, config["diffloss_d"])
    x, times, z = (jnp.asarray(given[name]) for name in ("x", "t", "c"))
    half = x.shape[0] // 2

    @jax.jit
    def run(params):
        out = head.apply({"params": params}, x, times, z)
        apply = functools.partial(head.apply, {"params": decoding_params(params, jnp.float32)})
        condition = apply(times, method=head.embed_time) + apply(z, method=head.embed_condition)
        modulations = apply(condition, method=head.modulations)
        both = apply(x[:half], modulations, method=head.evaluate)
        conditional, unconditional = both[:half, 0], both[half:, 0]
        eps = unconditional + config["cfg_scale"] * (conditional - unconditional)
        return out, jnp.stack([jnp.concatenate([eps, eps]), both[:, 1]], axis=1)

    names = ("out", "out_cfg")
    return {
        n: rearrange(a, "m two d -> m (two d)") for n, a in zip(names, run(params), strict=True)
    }


def mar_diffusion_tables(config, given, tensors):
    """Tables of the schedule, and single steps back."""
    head, params = _head(config), head_params(tensors, config["diffloss_d"])
    table = gaussian_diffusion.tables(steps=config["diffusion_steps"])
    out = {
        "base_betas": gaussian_diffusion.cosine_betas(config["diffusion_steps"]),
        "base_alphas_cumprod": table.alphas_cumprod,
        "base_posterior_log_variance_clipped": table.posterior_log_variance_clipped,
        "base_posterior_mean_coef1": table.posterior_mean_coef1,
        "base_posterior_mean_coef2": table.posterior_mean_coef2,
        "base_sqrt_recipm1_alphas_cumprod": table.sqrt_recipm1_alphas_cumprod,
    }
    names = [name.split("_") for name in config["arrays"] if name.startswith("timesteps_")]
    for count in (int(count) for _, count in names):
        table = gaussian_diffusion.tables(count, config["diffusion_steps"])
        out |= {
            f"timesteps_{count}": table.timesteps,
            f"betas_{count}": table.betas,
            f"posterior_log_variance_clipped_{count}": table.posterior_log_variance_clipped,
        }
    table = gaussian_diffusion.tables(int(config["p_sample_respacing"]))
    for name in sorted({name.partition("_")[0] for name in given}):
        step, x, z, noise = (given[f"{name}_{part}"] for part in ("t", "x", "c", "noise"))

        @jax.jit
        def run(params, step=step, x=x, z=z, noise=noise):
            net = head.apply({"params": params}, x, jnp.asarray(table.timesteps)[step], z)
            rows = {
                name: jnp.asarray(row)[step][:, None]
                for name, row in gaussian_diffusion.step_rows(table).items()
            }
            moments = gaussian_diffusion.moments(net[:, 0], net[:, 1], x, rows)
            spread = jnp.exp(0.5 * moments.log_variance) * noise * config["temperature"]
            return moments, moments.mean + (step != 0)[:, None] * spread

        moments, drawn = run(params)
        out |= {
            f"{name}_mean": moments.mean,
            f"{name}_log_variance": moments.log_variance,
            f"{name}_pred_xstart": moments.clean,
            f"{name}_sample": drawn,
        }
    return out


def mar_forward(config, given, tensors):
    """A training forward: what the head is told, its losses, gradients."""
    mar, importer = _mar(config)
    length, levels = config["seq_len"], config["diffusion_batch_mul"]
    y = jnp.asarray(_patches(config, given["latents"]))
    batch, dropped = y.shape[0], given["label_drop_uniform"] < config["label_drop_prob"]
    labels = jnp.asarray(np.where(dropped, mar.num_classes, given["labels"]))
    count = math.ceil(length * float(given["mask_rate"]))
    # Published rows are (level, example, token).
    levelled = lambda x: jnp.asarray(x.reshape(levels, batch, length, *x.shape[1:]).swapaxes(0, 1))
    draws = Draws(
        mask_ratio=jnp.full(batch, (count - 0.5) / length),
        order=jnp.asarray(given["orders"]),
        head=diffusion.Draws(levelled(given["diff_t"]), levelled(given["diff_noise"])),
    )
    published = lambda x: x.reshape(batch, levels, length, -1).swapaxes(0, 1).reshape(x.shape)

    @jax.jit
    def run(params):
        apply = lambda method, *args: mar.apply(
            {"params": params},
            *args,
            method=method,
            capture_intermediates=lambda module, _: module.name in ("encoder", "head"),
            mutable=["intermediates"],
        )

        def loss(params):
            out = mar.apply({"params": params}, y, labels, draws, method=mar.predict)
            return jnp.sum(out.loss) / jnp.sum(out.weight)

        value, grads = jax.value_and_grad(loss)(params)
        (z, hidden), kept = apply(mar.context, y, labels, draws)
        _, rows = apply(mar.predict, y, labels, draws)
        places = jnp.broadcast_to(jnp.arange(length), (batch, length))
        classes = mar.apply({"params": params}, labels, method=mar.embed_class)
        tokens = mar.apply({"params": params}, y, places, method=mar.embed_tokens)
        return value, grads, z, hidden, kept, rows, jnp.concatenate([classes, tokens], axis=1)[0]

    value, grads, z, hidden, kept, rows, encoder_in = run(
        jax.tree.map(jnp.asarray, importer(tensors))
    )
    [encoded] = kept["intermediates"]["encoder"]["__call__"]
    # Known tokens, which stand as they are revealed, in raster order; then empty slots.
    known = np.argsort(np.asarray(given["orders"])[:, : count - 1 : -1], axis=1)
    rest = np.take_along_axis(np.asarray(encoded[:, mar.class_repeats :]), known[..., None], 1)
    [net] = rows["intermediates"]["head"]["__call__"]
    [denoised] = rows["intermediates"]["head"]["denoise"]
    out = {
        "mask": hidden,
        "label_dropped": dropped,
        "encoder_in_b0": encoder_in,
        "encoder_out": np.concatenate([encoded[:, : mar.class_repeats], rest], axis=1),
        "z": z,
        "net_out": published(rearrange(net, "m two d -> m (two d)")),
        "row_mse": published(denoised.loss - denoised.variational),
        "row_vb": published(denoised.variational),
        "row_loss": published(denoised.loss),
        "loss": value,
    }
    named = published_gradients(grads, importer, tensors)
    stats = [named[f"grad.{name}"] for name in config["param_names"]]
    return out | {
        "grad_stats": np.array([(np.linalg.norm(g), np.sum(g)) for g in stats]),
        "grad_fake_latent": named["grad.fake_latent"],
        "grad_mask_token": named["grad.mask_token"],
        "grad_final_linear_weight": named["grad.diffloss.net.final_layer.linear.weight"],
    }


def mar_sample(config, given, tensors):
    """The sampler, at two temperatures."""
    mar, importer = _mar(config)
    length, iterations = config["seq_len"], config["num_iter"]
    steps, order = int(config["num_sampling_steps"]), jnp.asarray(given["orders"])
    settings = Settings(
        guided=config["cfg"] != 1,
        guidance_schedule="linear" if config["cfg_schedule"] == "linear" else "constant",
        iterations=iterations,
        steps=steps,
    )
    asked = Request(given["labels"], guidance_scale=config["cfg"], settings=settings)
    scales = asked.replace(settings=settings._replace(guided=True))
    scales = mar_sampler.guidance_scales(scales, length)

    @jax.jit
    def run(params, temperature, first, of_steps):
        def noise(i, places):
            index = places[..., None]
            # [B, L, ...], the steps among the channels.
            later = rearrange(of_steps[i], "t b l d -> b l (t d)")
            later = jnp.take_along_axis(later, index, axis=1)
            return (
                jnp.take_along_axis(first[i], index, axis=1),
                rearrange(later, "b n (t d) -> t b n d", t=steps),
            )

        request = asked.replace(temperature=temperature)
        return mar_sampler.record_tokens(mar, params, request, order, noise)

    params = jax.tree.map(jnp.asarray, importer(tensors))
    noises = given["init_noise"], given["step_noise"]
    tokens, recorded = run(params, config["temperature"], *noises)
    hot, hot_recorded = run(params, config["temperature_hot"], *noises)

    # An iteration that reveals nothing leaves all as it is.
    width = recorded[0]["z"].shape[-1]
    nothing = {"places": np.zeros((order.shape[0], 0), int), "z": np.zeros((0, width))}
    nothing |= {"tokens": np.zeros(tokens.shape)}
    done = dict(zip(mar_sampler._plan(length, iterations).iterations, recorded, strict=True))
    hot_done = dict(zip(done, hot_recorded, strict=True))
    out = {
        "cfg_iter": scales,
        "tokens": _images(config, tokens),
        "tokens_hot": _images(config, hot),
    }
    revealed, after = np.zeros((iterations, *order.shape), bool), [[nothing["tokens"]] * 2]
    for i in range(iterations):
        step = done.get(i, nothing)
        rows = np.argsort(step["places"], axis=1)
        np.put_along_axis(revealed[i], np.asarray(step["places"]), True, axis=1)
        z = np.asarray(step["z"]).reshape(1 + settings.guided, *rows.shape, width)
        z = np.take_along_axis(z, rows[None, ..., None], axis=2)
        out[f"z_iter{i}"] = z.reshape(-1, width)
        here = [
            by[i]["tokens"] if i in by else old
            for by, old in zip((done, hot_done), after[-1], strict=True)
        ]
        after.append(here)
    out["tokens_after"], out["tokens_after_hot"] = np.stack(after[1:-1]).swapaxes(0, 1)
    out["mask_to_pred"] = revealed
    out["mask_before"] = ~(np.cumsum(revealed, axis=0).astype(bool) ^ revealed)
    return out


def schedules(config, given, tensors):
    """Learning rates by epoch, the distribution of MAR's mask ratio, the moving average."""
    del tensors
    xar, mar, mask = config["xar"], config["mar"], config["mask_ratio"]
    epochs = given["epochs"]
    with jax.enable_x64(True):
        rate = lambda kind, total, constant=0: warmup_cosine(
            kind["lr"], kind["min_lr"], kind["warmup_epochs"], total, constant
        )
        out = {
            "xar_lr": rate(xar, xar["cosine_end"], xar["constant_until"])(epochs),
            "mar_lr_constant": rate(mar, max(mar["epochs"]), max(mar["epochs"]))(epochs),
        }
        for total in mar["epochs"]:
            out[f"mar_lr_cosine_{total}"] = rate(mar, total)(epochs[epochs <= total])
        least, decay = mask["mask_ratio_min"], config["reference_defaults"]["mar"]["ema_rate"]
        ratio = mask_ratio.ppf(jnp.asarray(given["mask_u"]), least)
        return out | {
            "mask_ratio_ppf": ratio,
            "mask_cdf": mask_ratio.cdf(jnp.asarray(given["mask_x"]), least),
            "mask_pdf": mask_ratio.pdf(jnp.asarray(given["mask_x"]), least),
            "mask_mean_std": jnp.stack(mask_ratio.mean_std(least)),
            **{
                name: jnp.ceil(int(name.removeprefix("num_masked_")) * ratio)
                for name in config["arrays"]
                if name.startswith("num_masked_")
            },
            "ema_after": optax.incremental_update(
                given["ema_param"], given["ema_before"], ema_rate(10**6, decay)
            ),
        }


KINDS = (mar_forward, mar_diffloss_net, mar_diffusion_tables, mar_sample, schedules)
