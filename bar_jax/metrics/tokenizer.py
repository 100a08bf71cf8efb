"""How well a tokenizer reconstructs the validation images: the numbers, and a picture."""

import functools
import pathlib
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bar_jax import data
from bar_jax.losses.reconstruction import to_8_bits
from bar_jax.metrics.reconstruction import bit_statistics, reconstruction_sums
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime import preemption
from bar_jax.visualize.grid import image_grid, save_png

CROP = "center"  # with which the published tokenizers are evaluated
COLUMNS = 8  # examples of a class in the picture
CLASSES = 10  # at most this many classes in the picture


class Measured(NamedTuple):
    """What was measured of a tokenizer.

    Attributes:
      numbers: what `reconstruction_sums` sums, averaged over images, the number of `images` and,
        for bits, what `bit_statistics` returns.
      bit_usages: how often each bit of a token is one, [k]; [] if tokens are not made of bits.
      originals, decoded: a few images and their reconstructions by class, uint8 [H, W, 3] each.
    """

    numbers: dict[str, float]
    bit_usages: list[float]
    originals: dict[int, list]
    decoded: dict[int, list]


def measure(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    tokenizer: nn.Module,
    params: dict,
    batch_size: int,
    limit: int | None = None,
    networks: dict[str, dict] | None = None,
) -> Measured:
    """Reconstruction metrics over the validation images, or `limit` of them, evenly spread.

    `networks` are LPIPS's; None leaves it out.
    """
    source = data.spread(data.open_images(config, validation=True), limit)
    batches = data.eval_batches(
        source,
        image_size=config.data.image_size,
        crop=CROP,
        batch_size=batch_size,
        on_damaged=config.data.on_damaged,
        rows=mesh_lib.batch_share(mesh).rows(batch_size),
    )
    totals, originals, decoded = None, {}, {}
    for batch in batches:
        preemption.check("reconstructions: nothing is kept")
        arrays = mesh_lib.put_batch(mesh, {name: batch[name] for name in ("image", "mask")})
        sums, pictures = _reconstruct(tokenizer, params, networks, arrays["image"], arrays["mask"])
        totals = sums if totals is None else jax.tree.map(np.add, totals, jax.device_get(sums))
        pictures = mesh_lib.local_rows(pictures)
        for i in np.flatnonzero(batch["mask"]):
            label = int(batch["label"][i])
            if label < CLASSES and len(originals.setdefault(label, [])) < COLUMNS:
                originals[label].append(batch["image"][i])
                decoded.setdefault(label, []).append(pictures[i])
    means = {name: total / count for name, (total, count) in totals.items()}
    ones = means.pop("ones", ())
    numbers = bit_statistics(ones) if len(ones) else {}
    numbers |= {name: float(mean) for name, mean in means.items()}
    numbers["images"] = float(totals["psnr"][1])
    return Measured(numbers, [round(float(p), 4) for p in ones], originals, decoded)


def _decoded(tokenizer, params, images):
    """Reconstructions of images in [-1, 1], and the tokens that they are made of."""
    codes = tokenizer.apply({"params": params}, images, method=tokenizer.encode)
    x = tokenizer.latents(codes)
    return tokenizer.apply({"params": params}, x, method=tokenizer.decode), x


@functools.partial(jax.jit, static_argnums=0)
def _reconstruct(tokenizer, params, networks, images, mask):
    images = data.to_float(images)
    decoded, x = _decoded(tokenizer, params, images)
    bits = x if x.dtype == np.uint8 else None  # real numbers are float32
    sums = reconstruction_sums(images, decoded, bits, mask, networks)
    return sums, mesh_lib.constrain_batch(data.to_uint8(decoded))


@functools.partial(jax.jit, static_argnums=0)
def rounded(tokenizer, params, images):
    """Reconstructions of images, rounded to 8 bits: uint8 [B, H, W, 3]."""
    decoded, _ = _decoded(tokenizer, params, data.to_float(images))
    return jnp.round(to_8_bits(decoded) * 255).astype(jnp.uint8)


def save_picture(config: ConfigDict, measured: Measured) -> np.ndarray:
    """Writes `reconstructions.png`: per class a row of originals above their reconstructions."""
    blank = np.full((config.data.image_size, config.data.image_size, 3), 255, np.uint8)
    rows = []
    for label in sorted(measured.originals):
        for row in (measured.originals[label], measured.decoded[label]):
            rows += row + [blank] * (COLUMNS - len(row))
    picture = image_grid(np.stack(rows), COLUMNS)
    if jax.process_index() == 0:
        save_png(pathlib.Path(config.workdir) / "reconstructions.png", picture)
    return picture
