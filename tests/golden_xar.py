"""The kinds of golden cases that are about xAR; see tests/test_golden_basis_hosts.py."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from bar_jax.generators import flow
from bar_jax.generators.request import Request
from bar_jax.generators.settings import Settings
from bar_jax.generators.xar import XAR, Draws, noised
from bar_jax.generators.xar_sampler import sample_sequence
from bar_jax.nn.guidance import guided
from bar_jax.nn.rotary import BASE
from bar_jax.nn.time import TimeEmbedding, sinusoidal, time_index
from bar_jax.pretrained.xar import buffers, xar_params
from tests.golden_gradients import published_gradients

EVERY = 16  # of the tokens that a case holds of an intermediate sequence


def xar_forward(config, given, weights):
    """Training: the noisy sequence, what the network makes of it, the loss and its gradients."""
    host = _host(config)
    importer = lambda tensors: _params(config, tensors)  # noqa: E731
    params = importer(weights)
    dropped = given["label_drop_uniform"] < config["label_drop_prob"]
    labels = np.where(dropped, config["null_label"], given["labels"])
    order = host.native_order
    y = _tokens(config, given["latents"])[:, order]
    time = given["time_cluster_major"].T
    noise = rearrange(given["noise_cluster_major"], "cell b n d -> b (cell n) d")
    draws = Draws(time=jnp.asarray(time), noise=jnp.asarray(noise))

    def loss(params):
        found = host.apply({"params": params}, y, labels, draws, method=host.predict)
        return jnp.sum(found.loss) / jnp.sum(found.weight), found.clean[0]

    (value, clean), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    named = published_gradients(grads, importer, weights)
    named = {name: named[f"grad.{name}"] for name in config["param_names"]}

    apply = lambda method, *args: np.asarray(  # noqa: E731
        host.apply({"params": params}, *args, method=method)
    )
    index = time_index(time)
    condition = apply(host.condition, labels, index)
    embedding = TimeEmbedding(host.width).apply({"params": params["time_embedding"]}, index)
    x = noised(y, draws, host.cell)
    embedded = apply(host.embed, x)
    # The encoder alone, and its first layer alone: the same module with fewer layers.
    blocks = {}
    for depth in (1, host.depth):
        part = params["encoder_blocks"]
        cut = params | {"encoder_blocks": jax.tree.map(lambda leaf, d=depth: leaf[:d], part)}
        run = lambda m: m.encoder_blocks(m.embed(x), condition, m.rotary(), m.block_causal())[0]  # noqa: E731
        blocks[depth] = host.clone(depth=depth).apply({"params": cut}, method=run)
    encoded = apply(lambda m: m.encoder_norm(blocks[host.depth]))
    visible = host.block_causal()
    cos, sin = host.rotary()
    tables = buffers(host)
    np.testing.assert_array_equal(np.isfinite(tables["mask"][0, 0]), visible)
    return {
        "label_used": labels,
        "time_index_cluster_major": index.T,
        "model_input": x,
        "time_embedding": jnp.moveaxis(embedding, 1, 0),
        "condition": np.moveaxis(condition, 1, 0),
        "encoder_in_b0_tokens": embedded[0, ::EVERY],
        "encoder_block0_out_b0_tokens": blocks[1][0, ::EVERY],
        "encoder_out_b0_tokens": encoded[0, ::EVERY],
        "velocity": noise - clean,
        "loss": value,
        "grad_stats": [[np.linalg.norm(g), g.sum()] for g in named.values()],
        "grad_pred_weight": named["pred.weight"],
        "grad_enc0_ada_bias": named["encoder_blocks.0.ada_lin.1.bias"],
        "raster_to_cluster": order,
        "cluster_to_raster": np.argsort(order),
        "attn_allowed": visible,
        "rope_cos": cos[0],
        "rope_sin": sin[0],
    }


def xar_sample_ode(config, given, weights):
    """Euler steps of the differential equation, cell after cell."""
    steps = config["num_steps"]
    clusters, tokens = _sample(config, given, weights, "euler", steps)
    times = flow.sampling_times("euler", steps)
    found = {
        "clusters": clusters,
        "tokens": tokens,
        "time_index": _of_cells(config, times),
    }
    # The same start in three steps.
    _, found["tokens_3steps"] = _sample(config, given, weights, "euler", 3)
    found["time_index_3steps"] = _of_cells(config, flow.sampling_times("euler", 3))
    return found | {
        "cluster1_state_after_2_steps": _state(config, given, weights, clusters[0], steps)
    }


def _state(config, given, weights, first, steps):
    """The second cell after two of its steps, by whole forward passes without a cache."""
    host, params = _host(config), _params(config, weights)
    n, times = host.cell, flow.sampling_times("euler", steps)
    x = jnp.asarray(given["init_noise"][1])
    scale = 1 + (config["cfg"] - 1) / (host.cells - 1)
    labels = jnp.asarray(given["labels"])
    for t, after in zip(times[:2], times[1:3], strict=True):
        y = jnp.zeros((x.shape[0], host.length, host.channels)).at[:, :n].set(first)
        y = y.at[:, n : 2 * n].set(x)
        time = jnp.zeros((x.shape[0], host.cells)).at[:, 1].set(t)
        both = [
            host.apply({"params": params}, y, classes, time)[:, n : 2 * n]
            for classes in (labels, jnp.full_like(labels, host.num_classes))
        ]
        x = flow.euler(guided(jnp.concatenate(both), scale), x, t, after)
    return x


def xar_sample_em(config, given, weights):
    """Euler-Maruyama steps, as published."""
    steps = config["num_steps"]
    clusters, tokens = _sample(config, given, weights, "euler_maruyama", steps)
    times = flow.sampling_times("euler_maruyama", steps)
    return {
        "clusters": clusters,
        "tokens": tokens,
        "time_index": _of_cells(config, times),
    }


def xar_em_step(config, given, weights):
    """The arithmetic of single steps, from given flows."""
    found = {}
    for step in sorted({name.rpartition("_")[0] for name in given}):
        (t, after), x, v = (given[f"{step}_{name}"] for name in ("t", "x", "v"))
        eps = given.get(f"{step}_eps", 0.0)
        of_both = guided(v, max(config["cfg"], 1.0))
        found |= {
            f"{step}_score": flow.score(v, np.concatenate([x, x]), t),
            f"{step}_drift": flow.drift(of_both, x, t),
            f"{step}_diffusion": flow.diffusion(t),
            f"{step}_x_next": flow.euler_maruyama(of_both, x, t, after, eps),
        }
    return found


def xar_tables(config, given, weights):
    """Time indices of both samplers, and the embedding of indices."""
    size = config["frequency_embedding_size"]
    assert config["max_period"] == BASE
    found = {"embed": sinusoidal(given["embed_index"], size)}
    samplers = {"em": "euler_maruyama", "ode": "euler"}
    for name in config["arrays"]:
        if "_time_index_" in name:
            short, steps = name.split("_time_index_")
            times = flow.sampling_times(samplers[short], int(steps))
            found[name] = time_index(times[:-1])
    return found


def _host(config):
    return XAR(
        channels=config["vae_embed_dim"] * config["patch_size"] ** 2,
        grid=(config["img_size"] // config["vae_stride"] // config["patch_size"],) * 2,
        cell_size=math.isqrt(config["cluster_len"]),
        num_classes=config["class_num"],
        width=config["dim"],
        depth=config["encoder_depth"],
        heads=config["encoder_num_heads"],
        decoder_depth=config["decoder_depth"],
    )


def _params(config, tensors):
    depths = {"depth": config["encoder_depth"], "decoder_depth": config["decoder_depth"]}
    return xar_params(tensors, heads=config["encoder_num_heads"], **depths)


def _tokens(config, latents):
    p = config["patch_size"]
    return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)


def _latents(config, y):
    """A sequence in the host's order -> [B, c, h, w]."""
    host, p = _host(config), config["patch_size"]
    x = np.asarray(y)[:, np.argsort(host.native_order)]
    return rearrange(x, "b (h w) (c p q) -> b c (h p) (w q)", h=host.grid[0], p=p, q=p)


def _sample(config, given, weights, sampler, steps):
    """Cells [cells, B, n, d] and latents."""
    host = _host(config)
    draw = jax.jit(sample_sequence, static_argnums=0)
    noise = given.get("step_noise")
    request = Request(
        labels=given["labels"].astype(np.int32),
        guidance_scale=config["cfg"],
        settings=Settings(guided=config["cfg"] > 1, sampler=sampler, steps=steps),
    )
    y = draw(
        host,
        _params(config, weights),
        request,
        given["init_noise"],
        None if noise is None else noise.astype(np.float32),
    )
    cells = rearrange(np.asarray(y), "b (cell n) d -> cell b n d", cell=host.cells)
    return cells, _latents(config, y)


def _of_cells(config, times):
    return np.tile(np.asarray(time_index(times[:-1])), (config["clusters"], 1))


KINDS = (xar_forward, xar_sample_ode, xar_sample_em, xar_em_step, xar_tables)
