"""Golden cases of the published BAR-FSQ tokenizer: its encoder, its decoder, and the whole.

Each function takes a case's config, inputs and weights, and returns what its `out_` arrays hold,
under the same names. Published images are [B, 3, H, W].
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from bar_jax.nn.vit import patchify, resize_positions
from bar_jax.pretrained import bar_fsq, siglip2
from bar_jax.tokenizers.bar_fsq import BarFSQ
from bar_jax.tokenizers.fsq import codes_to_bits
from tests.golden_gradients import published_gradients

SHARING = ("encoder", "decoder")  # kinds whose inputs stand in part with a whole tokenizer


def shared_inputs(folder, case):
    """Inputs that a case shares with the tokenizer of the same weights, which alone stores them.

    They lie beside the weights, in the file that is called like them, or in one that the case's
    description names ("on in_x of tokenizer.npz").
    """
    if case["kind"] not in SHARING:
        return {}
    told = re.findall(r"\bin_\w+ of ([\w.-]+\.npz)", case["description"])
    files = [folder / name for name in (case["weights"].replace(".safetensors", ".npz"), *told)]
    arrays = {}
    for file in filter(lambda file: file.is_file(), files):
        arrays |= {key: array for key, array in np.load(file).items() if key.startswith("in_")}
    return arrays


def encoder(config, given, tensors):
    """SigLIP2's vision tower: embeddings, features of both copies, resized positions."""
    module, importers = _tokenizer(config)
    tensors = {f"encoder.{name}": tensor for name, tensor in tensors.items()}
    trained = _on_device(importers["encoder"](tensors))
    frozen = _on_device(importers["frozen"](tensors))
    table = trained["encoder_vit"]["position_embedding"]
    images = _ours(given["x"])
    stored = (module.position_grid,) * 2

    @jax.jit
    def run(trained, frozen, images):
        apply = lambda params, x, method: module.apply({"params": params}, x, method=method)  # noqa: E731
        embedded = apply(trained, patchify(images, module.patch_size), _embed)
        return {
            "embeddings": embedded + resize_positions(table, stored, module.grid)[None],
            "trainable_features": apply(trained, images, BarFSQ.features),
            "frozen_features": apply(frozen, images, BarFSQ.features),
        }

    resized = {
        f"pos_resized_{h}x{w}": resize_positions(table, stored, (h, w))
        for h, w in config["resize_shapes"]
    }
    return {
        "patchified": patchify(images, module.patch_size)[:1, :3],
        "spatial_shapes": np.tile(module.grid, (len(images), 1)),
        **resized,
        **run(trained, frozen, images),
    }


def decoder(config, given, tensors):
    """From the quantizer's output to the image and the predicted features, and gradients."""
    module, importers = _tokenizer(config)
    tensors = {f"decoder.{name}": tensor for name, tensor in tensors.items()}
    params = _on_device(importers["decoder"](tensors))

    def total(params, z, image_weights, feature_weights):
        images, features = module.apply({"params": params}, z, method=_decode_and_predict)
        images = _theirs(images)
        sums = jnp.sum(images * image_weights) + jnp.sum(features * feature_weights)
        return sums, {"image": images, "clip_pred": features}

    run = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    (grads, grad_z), out = run(params, given["z"], given["w_img"], given["w_clip"])
    named = published_gradients(grads, importers["decoder"], tensors)
    named = {name.replace("grad.decoder.", "grad."): grad for name, grad in named.items()}
    return out | {"grad_z": grad_z} | named


def tokenizer(config, given, tensors):
    """End to end: bits, reconstruction, both features, gradients, and decoding of given bits."""
    module, importers = _tokenizer(config)
    params = _on_device(importers["tokenizer"](tensors))
    frozen = _on_device(importers["frozen"](tensors))
    images = _ours(given["x"])
    bits = given["token_bits_flat"].reshape(len(images), -1, module.bits).astype(np.uint8)
    apply = lambda params, x, method: module.apply({"params": params}, x, method=method)  # noqa: E731

    def total(params):
        reconstructed = apply(params, images, "__call__")
        return jnp.sum(_theirs(reconstructed.images) * given["w_img"]), reconstructed

    @jax.jit
    def run(params, frozen):
        grads, reconstructed = jax.grad(total, has_aux=True)(params)
        in_proj = params["quantizer"]["in_proj"]
        features = apply(params, images, "features")
        return grads, {
            "z_proj": features @ in_proj["kernel"] + in_proj["bias"][None, None],
            "indices": apply(params, images, "encode"),
            "z_quantized": apply(params, reconstructed.codes, _expand),
            "image": _theirs(reconstructed.images),
            "clip_pred": reconstructed.predicted_features,
            "clip_gt": apply(frozen, images, "features"),
            "decode_tokens_image": _theirs(apply(params, bits, "decode")),
            "bits of training": codes_to_bits(reconstructed.codes),
        }

    grads, out = run(params, frozen)
    np.testing.assert_array_equal(out.pop("bits of training"), out["indices"])
    return out | published_gradients(grads, importers["tokenizer"], tensors)


def _tokenizer(config):
    """The module of a config, and the importers of its parts."""
    sizes = config["siglip"]
    encoder = {
        "width": sizes["hidden_size"],
        "depth": sizes["num_hidden_layers"],
        "heads": sizes["num_attention_heads"],
        "mlp_width": sizes["intermediate_size"],
    }
    decoder = {
        "width": config["dec_width"],
        "depth": config["dec_layers"],
        "heads": config["dec_heads"],
        "mlp_width": 4 * config["dec_width"],
    }
    module = BarFSQ(
        image_size=config["crop_size"],
        patch_size=sizes["patch_size"],
        bits=config["token_size"],
        encoder=encoder,
        decoder=decoder,
        position_grid=math.isqrt(sizes["num_patches"]),
        predictor_layer=config["clip_align_layer_id"],
        predictor_width=config["clip_proj_hidden"],
    )
    encoder, decoder = ({n: part[n] for n in ("depth", "heads")} for part in (encoder, decoder))
    return module, {
        "frozen": lambda tensors: siglip2.encoder_params(
            tensors, prefix=siglip2.find_prefix("weights", tensors), **encoder
        ),
        "encoder": lambda tensors: bar_fsq.encoder_params(tensors, **encoder),
        "decoder": lambda tensors: bar_fsq.decoder_params(tensors, **decoder),
        "tokenizer": lambda tensors: bar_fsq.tokenizer_params(
            tensors,
            **{f"encoder_{name}": size for name, size in encoder.items()},
            **{f"decoder_{name}": size for name, size in decoder.items()},
        ),
    }


def _on_device(params):
    return jax.tree.map(jnp.asarray, params)


def _ours(images):
    return rearrange(images, "b c h w -> b h w c")


def _theirs(images):
    return rearrange(images, "b h w c -> b c h w")


def _embed(module, patches):
    return module.patch_embedding(patches)


def _expand(module, codes):
    return module.quantizer.expand(codes)


def _decode_and_predict(module, tokens):
    images, inner = module.render(tokens)
    return images, module.predict_features(inner)
