"""The golden cases of the tokenizer's losses; `test_golden_masked_bit.py` lists and compares them.

Images are stored as [B, 3, H, W] uint8.
"""

import json
import math
import re
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bar_jax.losses import discriminator
from bar_jax.losses.discriminator import DINO, Crop, Discriminator
from bar_jax.losses.gram import gram
from bar_jax.losses.perceptual import convnext_distance, convnext_logits, lpips, vgg_pair
from bar_jax.losses.reconstruction import absolute_error, squared_error
from bar_jax.nn.convnext import ConvNeXt
from bar_jax.nn.resize import resize
from bar_jax.nn.vgg import CONVOLUTIONS, VGG16, conv_name
from bar_jax.pretrained import dino
from bar_jax.pretrained.lpips import lpips_params
from bar_jax.pretrained.torchvision import convnext_depths, convnext_params, vgg16_params

# Weights of the published total.
L1, L2, PERCEPTUAL, CLIP, GRAM = 0.1, 1.0, 1.1, 0.7, 10.0
SIZE = 224  # what the networks see


def losses(config, given, tensors):
    """Every loss with its gradients, and a step of the discriminator."""
    images, fakes = _images(given["inputs_u8"]), _images(given["recon_u8"])
    nets, params = _networks(config, tensors)
    out = _discriminator(config, given, tensors, images, fakes)
    losses = jax.jit(lambda p, x, y: _image_losses(config, nets, p, x, y))
    found = losses(params, images, fakes)
    grads = {name: found.pop(f"grad_{name}") for name in ("pixels", "perceptual", "gram")}
    out |= _published(found) | {
        "perceptual_grad_recon": _nchw(grads["perceptual"]),
        "gram_grad_recon": _nchw(grads["gram"]),
        # Of the total once the discriminator has started; the clip loss does not reach the images.
        "total_grad_recon": _nchw(
            grads["pixels"]
            + PERCEPTUAL * grads["perceptual"]
            + GRAM * grads["gram"]
            + config["discriminator_weight"] * out["grad_gan"]
        ),
    }
    clip = np.mean(np.square(given["clip_pred"] - given["clip_gt"]))
    terms = {
        "reconstruction": found["pixels"],
        "perceptual": PERCEPTUAL * jnp.mean(found["perceptual"]),
        "clip": CLIP * clip,
        "gram": GRAM * jnp.mean(found["gram"]),
    }
    weight = config["discriminator_weight"]
    for name, factor in (("before", 0.0), ("after", 1.0)):
        gan = factor * out["gan"]
        weighted = weight * gan
        t = terms
        out[f"gen_{name}"] = np.array(
            [sum(terms.values()) + weighted, t["reconstruction"], t["perceptual"], weighted]
            + [factor, t["clip"], t["gram"], weight, gan],
            np.float32,
        )
    if "bn_x" in given:
        out |= _small_parts(given)
    if "big_a_u8" in given:
        big = _images(given["big_a_u8"])
        other = _images(255 - given["big_a_u8"][..., ::-1])
        found = jax.jit(lambda p, x, y: _image_values(config, nets, p, x, y))(params, big, other)
        out |= {f"big_{name}": value for name, value in _published(found).items()}
        out |= _resized(images, big)
    return out


def load_weights(path: Path, config) -> dict[str, np.ndarray]:
    """Weights that are not stored but made: a `.json` file holds the recipe."""
    stored = json.loads(path.read_text())
    table, seed = stored["table"], config.get("weights_seed", stored["weights_seed"])
    return {key: _made(key, seed, table) for key in table}


def _made(key, seed, table):
    # LPIPS's VGG16 is that of the Gram loss.
    source = re.sub(r"perceptual_loss\.lpips\.net\.slice\d", "gram_loss.feature_extractor", key)
    mean, std, absolute, shape, first = table[key]
    rng = np.random.RandomState(zlib.crc32(f"{seed}:{source}".encode()))
    value = (mean + std * rng.standard_normal(shape)).astype(np.float32)
    value = np.abs(value) if absolute else value
    np.testing.assert_array_equal(value.ravel()[: len(first)], np.float32(first), err_msg=key)
    return value


def losses_full(config, given, tensors):
    """The same at the networks' real size; vectors of the spectral norms are among the inputs."""
    vectors = {name[3:]: value for name, value in given.items() if name.startswith("sn.")}
    tensors = tensors | {f"loss.discriminator.{name}": v for name, v in vectors.items()}
    return losses(config, given, tensors)


def _networks(config, tensors):
    """LPIPS's VGG16, ConvNeXt and the Gram loss's VGG16, at the size of their weights."""
    loss = _below(tensors, "loss.")
    features = {
        re.sub(r"^slice\d+", "features", name): value
        for name, value in _below(loss, "perceptual_loss.lpips.net.").items()
    }
    classifier = _below(loss, "perceptual_loss.convnext.")
    params = {
        "lpips": {
            "vgg16": vgg16_params(features),
            "lpips": lpips_params(_below(loss, "perceptual_loss.lpips.")),
        },
        "convnext": convnext_params(classifier),
        "gram": vgg16_params(loss, "gram_loss.feature_extractor."),
    }
    names = [conv_name(stage, depth - 1) for stage, depth in enumerate(CONVOLUTIONS)]
    depths = convnext_depths(classifier)
    convnext = params["convnext"]
    stages = ["stem", *(f"down{stage}" for stage in range(1, len(depths)))]
    nets = {
        "lpips": VGG16(tuple(params["lpips"]["vgg16"][name]["bias"].size for name in names)),
        "gram": VGG16(tuple(params["gram"][name]["bias"].size for name in names)),
        "convnext": ConvNeXt(
            tuple(convnext[name]["bias"].size for name in stages),
            depths,
            convnext["logits"]["bias"].size,
        ),
    }
    return nets, jax.tree.map(jnp.asarray, params)


def _perceptual(config, nets, params, images, fakes):
    """LPIPS, and the weighted mean of it and of ConvNeXt's distance, [B] both."""
    *_, first, second = config["perceptual_loss"].split("-")
    weights = float(first), float(second)
    pair = vgg_pair(nets["lpips"], params["lpips"]["vgg16"], images, fakes, images.shape[1])
    distance = lpips(params["lpips"]["lpips"], *pair)
    # Published as one mean over the batch, which stands with every example.
    other = convnext_distance(nets["convnext"], params["convnext"], images, fakes, SIZE)
    other = jnp.mean(other, keepdims=True)
    return distance, (weights[0] * distance + weights[1] * other) / sum(weights)


def _image_values(config, nets, params, images, fakes):
    distance, perceptual = _perceptual(config, nets, params, images, fakes)
    values = gram(*vgg_pair(nets["gram"], params["gram"], images, fakes, SIZE))
    return {"lpips": distance, "perceptual": perceptual, "gram": values}


def _image_losses(config, nets, params, images, fakes):
    """Values of each example, and the gradients of their means."""

    def perceptual(fakes):
        distance, value = _perceptual(config, nets, params, images, fakes)
        return jnp.mean(value), {"lpips": distance, "perceptual": value}

    def gram_mean(fakes):
        values = gram(*vgg_pair(nets["gram"], params["gram"], images, fakes, SIZE))
        return jnp.mean(values), {"gram": values}

    def pixels(fakes):
        error = L1 * absolute_error(images, fakes) + L2 * squared_error(images, fakes)
        loss = jnp.mean(error)
        return loss, {"pixels": loss}

    logits = convnext_logits(nets["convnext"], params["convnext"], fakes, SIZE)
    out = {"convnext_logits": logits}
    for name, loss in (("perceptual", perceptual), ("gram", gram_mean), ("pixels", pixels)):
        grad, values = jax.grad(loss, has_aux=True)(fakes)
        out |= values | {f"grad_{name}": grad}
    return out


def _published(found):
    """Values of each example as the published code returns them."""
    per_example = {name: found[name].reshape(-1, 1, 1, 1) for name in ("lpips", "perceptual")}
    logits = {name: found[name] for name in ("convnext_logits",) if name in found}
    return per_example | logits | {"gram": jnp.mean(found["gram"])}


def _discriminator(config, given, tensors, images, fakes):
    heads = config["dino"].get("num_heads", DINO.heads)
    patch_size = config["dino"]["patch_size"]
    backbone = jax.tree.map(jnp.asarray, dino.backbone_params(_below(tensors, "dino."), heads))
    published = _below(tensors, "loss.discriminator.")
    params, start = jax.tree.map(jnp.asarray, dino.head_params(published))
    up, places = backbone["vit"]["blocks"]["mlp"]["up"], backbone["vit"]["position_embedding"]
    depth, width, mlp_width = up["kernel"].shape
    side = math.isqrt(len(places) - 1) * patch_size
    sizes = (width, depth, heads, mlp_width, patch_size, side)
    kept = tuple(layer for layer in DINO.keep if layer < depth)
    net = Discriminator(*sizes, kept, params["second"]["kernel"].shape[1])
    prepare = jax.jit(lambda x, crop: discriminator.prepare(x, crop, side))
    logits = jax.jit(lambda p, v, b, x: discriminator.logits(net, p, v, b, x))
    whole, step = Crop(False, 0, 0), jax.jit(discriminator.power_iteration)

    exact = _images(given["disc_u8"])
    features = jax.jit(lambda b, x: DINO(*sizes, kept).apply({"params": b}, x))(backbone, exact)
    features = features.swapaxes(2, 3)
    real = prepare(images, whole)
    stored = prepare(discriminator.as_stored(fakes), whole)

    once = step(params, start)
    twice = step(params, once)

    @jax.jit
    def train(params, backbone):
        def loss(params):
            logits = lambda v, x: discriminator.logits(net, params, v, backbone, x)
            on_real, on_fake = logits(once, real), logits(twice, stored)
            loss = jnp.mean(discriminator.hinge(on_real, on_fake))
            return loss, (jnp.mean(on_real), jnp.mean(on_fake))

        return jax.value_and_grad(loss, has_aux=True)(params)

    @jax.jit
    def generator(fakes, params, backbone):
        def loss(fakes):
            images = discriminator.prepare(fakes, whole, side)
            on_fake = discriminator.logits(net, params, once, backbone, images)
            return jnp.mean(discriminator.generator_loss(on_fake))

        return jax.value_and_grad(loss)(fakes)

    (loss, means), grads = train(params, backbone)
    gan, grad_gan = generator(fakes, params, backbone)
    vectors = dino.vector_tensors(twice)
    flat = lambda ending: np.concatenate(
        [np.ravel(vectors[name]) for name in sorted(vectors) if name.endswith(ending)]
    )
    grads = {f"d_grad.{name}": np.asarray(g) for name, g in dino.head_tensors(grads).items()}
    out = {
        "disc_logits_224": logits(params, start, backbone, exact),
        "dino_act_mean": features.mean(axis=(1, 2, 3)),
        "dino_act_slice": features[:, :, :8, :8],
        "disc_logits_small_bicubic": logits(params, start, backbone, prepare(fakes, whole)),
        "d_loss_train": loss,
        "d_logits_real_mean": means[0],
        "d_logits_fake_mean": means[1],
        "sn_u_after": flat("weight_u"),
        "sn_v_after": flat("weight_v"),
        "gan": gan,
        "grad_gan": grad_gan,
        **grads,
        **{f"{name}_slice": g[:8, :16] for name, g in grads.items() if g.ndim > 1},
    }
    if "big_a_u8" in given:
        big = _images(given["big_a_u8"])
        out["disc_logits_big_area"] = logits(params, start, backbone, prepare(big, whole))
        if "crop_offset" in config:
            crop = Crop(True, *config["crop_offset"])
            out["disc_logits_big_crop"] = logits(params, start, backbone, prepare(big, crop))
    return out


def _small_parts(given):
    hinge = discriminator.hinge(given["logits_real"], given["logits_fake"])
    x = given["bn_x"].swapaxes(1, 2)
    normalised = discriminator.batch_norm_local(x, given["bn_w"], given["bn_b"], 8)
    return {"hinge": jnp.mean(hinge), "batchnorm_local": normalised.swapaxes(1, 2)}


def _resized(images, big):
    modes = {
        "up_bicubic_aa": (images, "bicubic_antialiased"),
        "up_bilinear": (images, "bilinear"),
        "down_bicubic_aa": (big, "bicubic_antialiased"),
        "down_bilinear": (big, "bilinear"),
        "up_bicubic_noaa": (images, "bicubic"),
        "down_area": (big, "area"),
    }
    return {
        f"resize_{name}_slice": _nchw(resize(x, SIZE, mode))[0, :, 100:104]
        for name, (x, mode) in modes.items()
    }


def _images(stored):
    """[B, 3, H, W] uint8 -> [B, H, W, 3] float32 in [-1, 1]."""
    return jnp.asarray(stored.transpose(0, 2, 3, 1).astype(np.float32) / 127.5 - 1)


def _nchw(images):
    return images.transpose(0, 3, 1, 2)


def _below(tensors, prefix):
    return {name[len(prefix) :]: v for name, v in tensors.items() if name.startswith(prefix)}
