"""Parity with the published masked-bit models, on recorded weights, inputs and random draws.

`<BAR_JAX_GOLDEN>/masked_bit/cases.json` lists the cases; a case of a known kind may have any sizes.
Every function below takes a case's config, inputs and weights, and returns what the case's `out_`
arrays hold, under the same names.
"""

import functools
import json
import math
import os
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from bar_jax.bases import permutation
from bar_jax.generators.causal import CausalBlock, CausalTransformer
from bar_jax.generators.masked_bit import Draws, MaskedBitGenerator, record_tokens
from bar_jax.generators.request import Request
from bar_jax.generators.settings import Settings
from bar_jax.generators.shuffle import unshuffle
from bar_jax.heads.logits import bit_cross_entropy
from bar_jax.heads.masked_bit import (
    HIDDEN,
    VISIBLE_WEIGHT,
    MaskedBitHead,
    Masking,
    hide,
    logit_normal_ratio,
)
from bar_jax.nn.decoding import decoding_params
from bar_jax.nn.rotary import axial_table, rotate
from bar_jax.pretrained.masked_bit import generator_params, head_params
from bar_jax.tokenizers.fsq import Quantizer, bits_to_codes, bound, codes_to_bits, quantize
from bar_jax.training.optimizer import warmup_cosine
from bar_jax.training.step import ema_rate, moved
from tests.golden_gradients import published_gradients
from tests.golden_losses import load_weights, losses, losses_full
from tests.golden_tokenizer import decoder, encoder, shared_inputs, tokenizer

pytestmark = pytest.mark.slow
FOLDER = Path(os.environ["BAR_JAX_GOLDEN"]) / "masked_bit"
CASES = json.loads((FOLDER / "cases.json").read_text())["cases"] if FOLDER.is_dir() else {}
NOT_COMPARED = "margins"  # "information only", says the case

LOSS_EPS = 1e-8  # the published loss divides by the sum of weights plus this


def fsq(config, given, tensors):
    """The quantiser: values, straight-through gradients, look-up of bits."""
    module = Quantizer(config["token_size"], config["in_channel"], config["out_channel"])
    params = {
        name: {"kernel": tensors[f"{name}.weight"].T, "bias": tensors[f"{name}.bias"]}
        for name in ("in_proj", "out_proj")
    }
    apply = lambda params, x, method: module.apply({"params": params}, x, method=method)  # noqa: E731

    @jax.jit
    def outputs(params, x, weights, flat_bits, raw, raw_weights):
        def total(params, x):
            return jnp.sum(apply(params, apply(params, x, "__call__"), "expand") * weights)

        grads, grad_x = jax.grad(total, argnums=(0, 1))(params, x)
        z = x @ params["in_proj"]["kernel"] + params["in_proj"]["bias"][None, None]
        codes, raw_codes = apply(params, x, "__call__"), quantize(raw)
        bits = flat_bits.reshape(flat_bits.shape[0], -1, config["token_size"])
        return {
            "z_proj": z,
            "bounded": bound(z),
            "codes": codes,
            "indices": codes_to_bits(codes),
            "dequantized": apply(params, codes, "expand"),
            "grad_x": grad_x,
            "grad_in_proj_weight": grads["in_proj"]["kernel"].T,
            "grad_out_proj_weight": grads["out_proj"]["kernel"].T,
            "codebook_entry": apply(params, bits_to_codes(bits), "expand"),
            "z_raw_bounded": bound(raw),
            "z_raw_codes": raw_codes,
            "z_raw_indices": codes_to_bits(raw_codes),
            "z_raw_grad": jax.grad(lambda z: jnp.sum(quantize(z) * raw_weights))(raw),
        }

    names = ("x", "w", "indices_flat", "z_raw", "w_raw")
    return outputs(params, *(given[name] for name in names))


def rope(config, given, tensors):
    """The rotary tables and what they do to queries."""
    cos, sin = axial_table((config["grid"],) * 2, config["head_dim"], config["num_cls_token"])
    t = given["t"].swapaxes(1, 2)  # published: heads before positions

    def turned(t, rows):
        return rotate(t, cos[rows], sin[rows]).swapaxes(1, 2)

    order = given["rope_order"]
    everywhere = np.ones(t.shape[:2] + t.shape[3:], np.float32)
    return {
        "freqs_cos": cos,
        "freqs_sin": sin,
        "applied_sequential": turned(t, np.broadcast_to(np.arange(t.shape[1]), order.shape)),
        "applied_order": turned(t, order),
        "applied_last": turned(t[:, -1:], order[:, -1:]),
        "rotate_half": rotate(t, 0 * everywhere, everywhere).swapaxes(1, 2),
    }


def mbm_head(config, given, tensors):
    """The masked-bit head: logits, loss, gradients, masking, four ways of sampling."""
    depth, batch = config["num_layers"], config["sample_batch"]
    schedule = tuple(config["tokens_allocation"])
    head = MaskedBitHead(config["seq_len"], config["width"], depth)
    importer = functools.partial(head_params, depth=depth)
    params = jax.tree.map(jnp.asarray, importer(tensors))

    @jax.jit
    def given_mask(params, z, symbols, hidden, bits, ratio):
        def loss(params, z):
            logits, kept = head.apply(
                {"params": params}, symbols, z, ratio,
                capture_intermediates=True, mutable="intermediates",
            )  # fmt: skip
            weight = jnp.where(hidden, 1.0, VISIBLE_WEIGHT)
            entropy = jnp.sum(weight * bit_cross_entropy(logits, bits))
            t_embed = kept["intermediates"]["time_embed_out"]["__call__"][0]
            return entropy / (jnp.sum(weight) + LOSS_EPS), (logits, t_embed)

        (loss, (logits, t_embed)), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, z)
        return {"t_embed": t_embed, "logits": logits, "loss": loss}, *grads

    names = ("masked_ids", "masks", "target", "mask_ratio")
    out, grads, grad_z = given_mask(params, given["conditions"][:, 0], *(given[n] for n in names))
    out["grad_conditions"] = grad_z[:, None]
    out |= published_gradients(grads, importer, tensors)
    out["mask_masked_ids"], out["mask_masks"], out["mask_mask_ratio"] = jax.jit(hide)(
        given["mask_target"], logit_normal_ratio(given["z"]), given["u"]
    )

    @functools.partial(jax.jit, static_argnames="guidance")
    def draw(z, uniform, temperature, guidance):
        laid_out = {"params": decoding_params(params, jnp.float32)}
        return head.apply(laid_out, z, guidance, temperature, schedule, uniform, method=head.sample)

    for run, guidance in (("cfg", config["guidance"]), ("nocfg", None)):
        uniform = np.full((batch, *head.noise_shape(schedule)), 0.5, np.float32)
        for t in range(len(schedule)):
            uniform[:, t, :, :2] = given[f"unif_{run}_tok{t}"]
            if f"unif_{run}_conf{t}" in given:  # the last step hides nothing
                uniform[:, t, :, 2] = given[f"unif_{run}_conf{t}"]
        z = given["sample_conditions"][:, 0]
        z = z[:batch] if guidance is None else z
        for suffix, temperature in (("", config["temperature"]), ("_t0", 0.0)):
            bits, logits = draw(z, uniform, temperature, guidance)
            out |= {f"sample_{run}{suffix}_ids": bits, f"sample_{run}{suffix}_logits": logits}
    return out


def bar_forward(config, given, tensors):
    """The whole generator in training: everything between the bits and the gradients."""
    generator, importer = _generator(config)
    trunk, bits = generator.trunk, generator.head.bits
    order = given["orders"]
    batch, length = order.shape
    masking = Masking(
        ratio=logit_normal_ratio(given["head_z"]).reshape(batch, length),
        uniform=given["head_u"].reshape(batch, length, bits),
    )
    draws = Draws(
        label=given["drop_uniform"],
        order_choice=np.zeros(batch, np.float32),
        order_places=np.argsort(order, axis=1).astype(np.float32),  # their argsort is the order
        head=masking,
    )

    @jax.jit
    def run(params):
        def loss(params):
            with nn.intercept_methods(_keep_arguments):
                sums, kept = generator.apply(
                    {"params": params}, given["input_ids"], given["labels"], draws, 1.0, False,
                    method=generator.loss, capture_intermediates=True, mutable="intermediates",
                )  # fmt: skip
            total, weight = sums["loss"]
            return total / (weight + LOSS_EPS), kept["intermediates"]

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, kept), grads = run(jax.tree.map(jnp.asarray, importer(tensors)))
    # Of a block scanned over layers, [depth, ...]: what went in and what came out.
    block_in, condition = kept["trunk"]["blocks"]["arguments"][0][:2]
    block_out = kept["trunk"]["blocks"]["__call__"][0][0]
    _, labels, written = kept["trunk"]["arguments"][0]
    places = trunk.places(jnp.asarray(written), 0, trunk.prefix + length)
    (head_z, head_bits, *_), (symbols, _, ratio) = kept["head"]["arguments"]
    out = {
        "condition": labels + 3,  # published rows 0..2 of the class table are unused
        "block_in": block_in[0],
        "adaln_c": condition[0],
        "rope_order": places.own,
        "target_rope_order": places.target,
        "latent_conditions_all": kept["trunk"]["output_proj"]["__call__"][0][
            :, trunk.class_repeats :
        ],
        "head_target": head_bits,
        "head_conditions": head_z[:, None],
        "head_masks": symbols == HIDDEN,
        "head_masked_ids": symbols,
        "head_mask_ratio": ratio,
        "head_logits": kept["head"]["__call__"][0],
        "loss": loss,
    }
    out |= {f"block{i}_out": block_out[i] for i in range(trunk.depth)}
    out |= published_gradients(grads, importer, tensors)
    norms = [np.linalg.norm(out[f"grad.{name}"]) for name in config["grad_norms_order"]]
    out["grad_norms"] = np.array([norm if norm > 0 else -1 for norm in norms])
    return out


def bar_generate(config, given, tensors):
    """Sampling with the cache, or by running the whole sequence anew for every token."""
    generator, importer = _generator(config)
    params = jax.tree.map(jnp.asarray, importer(tensors))
    batch, length = config["batch"], generator.trunk.num_tokens
    schedule = tuple(config["tokens_allocation"])
    order = jnp.broadcast_to(jnp.arange(length), (batch, length))
    if config.get("random_order", False):
        order = permutation.draw_orders(
            config["random_ratio"],
            given["order_choice_uniform"][:, 0],
            given["order_logits_uniform"],
        )
    uniform = np.full((length, batch, *generator.head.noise_shape(schedule)), 0.5, np.float32)
    if "unif_tok" in given:
        uniform[..., :2] = given["unif_tok"].swapaxes(1, 2)
    if "unif_conf" in given:
        uniform[:, :, :-1, :, 2] = given["unif_conf"].swapaxes(1, 2)
    uniform = jnp.asarray(uniform)
    request = Request(
        labels=given["labels"],
        guidance_scale=config["guidance"],
        temperature=config["temperature"],
        settings=Settings(guided=config["guidance"] > 1, unmasking_schedule=schedule),
    )
    draw = record_tokens if config.get("kv_cache", True) else _sample_uncached
    run = jax.jit(lambda params: draw(generator, params, request, order, lambda i: uniform[i]))
    bits, recorded = run(params)
    return {
        "ids": bits.reshape(batch, -1),
        "orders": order,
        "latent_conditions": recorded["z"],
        "logits": recorded["logits"],
    }


def schedules(config, given, tensors):
    """Learning rate, share of random orders and moving average, step by step."""
    rate = warmup_cosine(config["base_lr"], config["end_lr"], config["warmup"], config["total"])
    anneal = config["anneal_start"], config["anneal_end"]

    # Operation by operation in float32, as the published code: joined ones round otherwise.
    shadow = [np.float32(0)]
    for update, value in enumerate(given["ema_param_values"], start=1):
        shadow.append(moved(shadow[-1], np.float32(value), np.float32(ema_rate(update, 0.999))))
    return {
        "lr": rate(given["steps"]),
        "random_ratio": permutation.random_share(given["steps"], *anneal),
        "ema_decay": 1 - ema_rate(given["ema_steps"], 0.999),
        "ema_shadow": np.array(shadow[1:]),
    }


KINDS = {
    function.__name__: function
    for function in (
        *(fsq, rope, mbm_head, bar_forward, bar_generate, schedules),
        *(encoder, decoder, tokenizer),
        *(losses, losses_full),
    )
}
FULL_SIZE = ("losses_full",)  # kinds


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.exhaustive] * (case["kind"] in FULL_SIZE))
        for name, case in CASES.items()
    ],
)
def test_case(name):
    case = CASES[name]
    assert case["kind"] in KINDS, f"{name}: no test for cases of kind {case['kind']!r}"
    arrays = shared_inputs(FOLDER, case) | dict(np.load(FOLDER / case["npz"]))
    given = {key[len("in_") :]: _narrow(a) for key, a in arrays.items() if key.startswith("in_")}
    prefix = case["weights_prefix"]
    tensors = _load_weights(case)
    tensors = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

    got = KINDS[case["kind"]](case["config"], given, tensors)

    expected = {key[len("out_") :]: a for key, a in arrays.items() if key.startswith("out_")}
    expected.pop(NOT_COMPARED, None)
    assert expected and not expected.keys() - got.keys()
    wrong = {
        key: _difference(np.asarray(got[key]), want, _tolerance(case, key))
        for key, want in expected.items()
    }
    assert not any(wrong.values()), {key: told for key, told in wrong.items() if told}


def _load_weights(case):
    if not case["weights"]:
        return {}
    path = FOLDER / case["weights"]
    return load_weights(path, case["config"]) if path.suffix == ".json" else load_file(path)


def _tolerance(case, name):
    """The tolerance of an output: the key that its name contains, `gradients` before the others."""
    tolerances = case["tolerances"]
    if "grad" in name and "gradients" in tolerances:
        return tolerances["gradients"]
    keys = [key for key in tolerances if key in name and key not in ("gradients", "default")]
    return tolerances[keys[0]] if keys else tolerances.get("default", "exact")


def _difference(got, want, tolerance):
    """None where `got` is as good as `want`, else what is wrong."""
    if got.shape != want.shape:
        return f"shape {got.shape}, expected {want.shape}"
    got, want_float = got.astype(np.float64), want.astype(np.float64)
    error = np.abs(got - want_float)
    if want.dtype.kind in "biu" or tolerance == "exact":
        return f"{np.sum(error > 0)} of {error.size} differ" if np.any(error != 0) else None
    if "rel_l2" in tolerance:
        relative = np.linalg.norm(error) / np.linalg.norm(want_float)
        limit = tolerance["rel_l2"]
        return None if relative <= limit else f"relative L2 error {relative:.2e} > {limit:.2e}"
    allowed = tolerance.get("atol", 0.0) + tolerance.get("rtol", 0.0) * np.abs(want_float)
    if np.all(error <= allowed):
        return None
    return f"error {np.max(error):.2e}, {np.max(error / allowed):.1f} times what is allowed"


def _narrow(array):
    """int64 draws of the published code as int32: JAX's integers."""
    return array.astype(np.int32) if array.dtype == np.int64 else array


def _generator(config):
    """The generator of a config and the importer of its weights."""
    patch_size, head = config.get("patch_size", 1), config["mbm_head"]
    bits = config["token_size"] * patch_size**2
    side = math.isqrt(config["image_seq_len"])
    trunk = CausalTransformer(
        bits=bits,
        grid=(side // patch_size,) * 2,
        num_classes=config["condition_num_classes"],
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        output_width=head["width"],
        class_repeats=config["repeat_class_condition"],
    )
    generator = MaskedBitGenerator(
        trunk, MaskedBitHead(bits, head["width"], head["num_layers"]), (side, side), patch_size
    )
    importer = functools.partial(
        generator_params, depth=trunk.depth, heads=trunk.heads, head_depth=head["num_layers"]
    )
    return generator, importer


def _keep_arguments(next_function, args, kwargs, context):
    """Sows what the trunk, its blocks and the head are called with."""
    module = context.module
    wanted = {CausalTransformer: "__call__", CausalBlock: "__call__", MaskedBitHead: "__call__"}
    is_loss = type(module) is MaskedBitHead and context.method_name == "loss"
    if is_loss or wanted.get(type(module)) == context.method_name:
        module.sow("intermediates", "arguments", args)
    return next_function(*args, **kwargs)


def _sample_uncached(generator, params, request, order, noise):
    """What `record_tokens` does, but the trunk runs over the whole sequence for every token."""
    trunk, head, labels = generator.trunk, generator.head, request.labels
    head_params = decoding_params(params["head"], jnp.float32)
    guided, schedule = request.settings.guided, request.settings.unmasking_schedule
    both = (lambda x: jnp.concatenate([x, x])) if guided else (lambda x: x)
    nobody = jnp.full_like(labels, trunk.num_classes)
    all_labels = jnp.concatenate([labels, nobody]) if guided else labels

    def write_token(tokens, i):
        z = trunk.apply({"params": params["trunk"]}, both(tokens), all_labels, both(order))[:, i]
        scale = 1 + (request.guidance_scale - 1) * i / trunk.num_tokens if guided else None
        bits, logits = head.apply(
            {"params": head_params}, z, scale, request.temperature, schedule, noise(i),
            method=head.sample,
        )  # fmt: skip
        return tokens.at[:, i].set(bits), {"z": z, "logits": logits}

    nothing = jnp.zeros((labels.shape[0], trunk.num_tokens, trunk.bits), jnp.uint8)
    tokens, recorded = jax.lax.scan(write_token, nothing, jnp.arange(trunk.num_tokens))
    tokens = permutation.scatter(tokens, order)
    return unshuffle(tokens, generator.token_grid, generator.patch_size), recorded
