"""Bits of basis coefficients: what the first m tokens of an image are worth.

As a job, writes into `basis/`, of the workdir's tokenizer and of its generator if it has one

    rows.png            rows of A as images of the token grid
    reconstructed.png   real images, decoded from their first tokens
    generated.png       the same of generated ones
    prefixes.png        PSNR and class accuracy against the number of tokens (extra `figures`)

and into `summary.json`, lists over the numbers of tokens `prefix_tokens`

    prefix_psnr                    of validation images, dB
    prefix_class_accuracy          a classifier's of the same, if evaluate.metrics has it
    prefix_sample_class_accuracy   the same of generated images

Tokens of a tokenizer without a basis are taken in raster order: what is missing then is the lower
part of the image.
"""

import functools
import logging
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bar_jax import data
from bar_jax.data import codec
from bar_jax.inspection.basis import draw_rows
from bar_jax.metrics import classifier, feature_networks, reference
from bar_jax.metrics.features import FeatureNetwork, extract
from bar_jax.metrics.reconstruction import psnr
from bar_jax.metrics.tokenizer import CROP
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime import preemption, workdir
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.files import write_atomically
from bar_jax.runtime.writer import update_summary
from bar_jax.sampling.draw import draw_tokens, make_request
from bar_jax.tokenizers import basis_inside
from bar_jax.tokenizers.fsq import bits_to_codes
from bar_jax.training import restore
from bar_jax.visualize import basis as pictures
from bar_jax.visualize.grid import save_png

logger = logging.getLogger(__name__)
IMAGES = 1000  # real ones that are decoded from prefixes, and as many generated ones
POINTS = 16  # numbers of tokens that are tried, besides one
SHOWN = 8  # images in a picture
NOTHING_KEPT = "basis: not finished"


def run(config: ConfigDict) -> dict[str, object]:
    """Decodes prefixes of real and of generated images; returns the summary."""
    mesh = mesh_lib.make_mesh(**config.mesh)
    folder = pathlib.Path(config.workdir) / "basis"
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    with jax.set_mesh(mesh):
        tokenizer, generator = restore.load_tokenizer(config, mesh), None
        if workdir.begun(pathlib.Path(config.workdir) / "generator"):
            generator = restore.load_generator(config, mesh)
        judge = None
        if "class_accuracy" in config.evaluate.metrics:
            judge = feature_networks.load(config, mesh, feature_networks.CLASSIFIER)
        counts = pictures.even_counts(tokenizer.module.length, POINTS)
        settings = {"tokenizer_step": tokenizer.step, "prefix_tokens": counts}
        real = list(_real(config, mesh, tokenizer))
        curves = {"prefix_psnr": _psnr(mesh, tokenizer, real, counts)}
        sets = {"reconstructed": (real, "prefix_class_accuracy")}
        if generator is not None:
            settings["generator_step"] = generator.step
            drawn = list(_generated(config, mesh, generator))
            sets["generated"] = (drawn, "prefix_sample_class_accuracy")
        for name, (batches, number) in sets.items():
            if judge is not None:
                curves[number] = _accuracy(mesh, tokenizer, batches, counts, judge)
            picture = _picture(tokenizer, batches[0], counts)
            if jax.process_index() == 0:
                save_png(folder / f"{name}.png", picture)
        if basis_inside(config):
            draw_rows(folder, tokenizer)
    if jax.process_index() == 0:
        try:
            write_atomically(folder / "prefixes.png", pictures.draw_prefixes(counts, curves))
        except InputError as error:  # no matplotlib
            logger.info("basis: %s", error)
    return update_summary(config.workdir, settings | curves)


def _real(config, mesh, tokenizer) -> Iterator[dict]:
    """Batches of this process: real images with their bits."""
    source = data.spread(data.open_images(config, validation=True), IMAGES)
    for batch in reference.batches_of(config, mesh, source, CROP, "real images"):
        images = mesh_lib.put_batch(mesh, {"image": batch["image"]})["image"]
        bits = codec.tokens(tokenizer.module, tokenizer.params, images)
        yield batch | {"bits": jax.block_until_ready(bits)}


def _generated(config, mesh, generator) -> Iterator[dict]:
    """Batches of this process: bits of generated images, those that job=sample draws."""
    size = config.sample.batch_size
    own = mesh_lib.batch_share(mesh).rows(size)
    for begin in range(0, IMAGES, size):
        preemption.check(NOTHING_KEPT)
        index = (begin + own).astype(np.int32)
        batch = {"index": index, "label": index % np.int32(config.data.num_classes)}
        request = make_request(config, mesh, batch)
        request = request.replace(settings=request.settings._replace(tokens=0))
        bits = draw_tokens(generator.module, generator.params, request)
        yield batch | {"bits": jax.block_until_ready(bits), "mask": index < IMAGES}


@functools.partial(jax.jit, static_argnums=0)
def _decoded(tokenizer, params, bits, count):
    """Images [B, H, W, 3] of the first `count` tokens."""
    lengths = jnp.full(bits.shape[0], count)
    images = tokenizer.apply(
        {"params": params}, bits_to_codes(bits), lengths, method=tokenizer.from_prefix
    )
    return mesh_lib.constrain_batch(images)


def _psnr(mesh, tokenizer, batches, counts) -> list[float]:
    """Mean PSNR of real images for each number of tokens, dB."""
    totals, images = np.zeros(len(counts)), 0
    for batch in batches:
        arrays = mesh_lib.put_batch(mesh, {name: batch[name] for name in ("image", "mask")})
        for i, count in enumerate(counts):
            preemption.check(NOTHING_KEPT)
            decoded = _decoded(tokenizer.module, tokenizer.params, batch["bits"], count)
            totals[i] += float(_summed_psnr(arrays["image"], decoded, arrays["mask"]))
        images += int(mesh_lib.gather_to_host(arrays["mask"]).sum())
    return [round(float(total / images), 4) for total in totals]


@jax.jit
def _summed_psnr(images, decoded, mask):
    return jnp.sum(jnp.where(mask, psnr(data.to_float(images), decoded), 0))


def _accuracy(mesh, tokenizer, batches, counts, judge: FeatureNetwork) -> list[float]:
    """Share of images that a classifier takes for their class, for each number of tokens."""
    name, found = f"{judge.name}/logits", []
    for count in counts:
        preemption.check(NOTHING_KEPT)
        decoded = (
            batch | {"image": _pixels(tokenizer.module, tokenizer.params, batch["bits"], count)}
            for batch in batches
        )
        features = extract(mesh, [judge], decoded, rows=[name])
        found.append(round(classifier.class_accuracy(features.rows[name], features.labels), 4))
    return found


@functools.partial(jax.jit, static_argnums=0)
def _pixels(tokenizer, params, bits, count):
    return data.to_uint8(_decoded(tokenizer, params, bits, count))


def _picture(tokenizer, batch, counts) -> np.ndarray:
    """The first images of a batch, a row each, from few tokens to all."""
    images = [
        mesh_lib.gather_to_host(_pixels(tokenizer.module, tokenizer.params, batch["bits"], count))
        for count in counts
    ]
    return pictures.progressive_picture(np.stack([image[:SHOWN] for image in images]))
