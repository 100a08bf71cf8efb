"""How well a tokenizer reconstructs the validation images.

Writes `reconstructions.png` (originals above their reconstructions, a pair of rows per class) and
into `summary.json` the numbers, named `reconstruction_...`. Of KL-16 the mean of the posterior is
decoded, not a sample of it; where tokens are no bits, nothing is told of bits.
"""

import functools
import pathlib
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from bar_jax import data, models
from bar_jax import mesh as mesh_lib
from bar_jax.metrics.reconstruction import bit_statistics, reconstruction_sums
from bar_jax.training.writer import update_summary
from bar_jax.visualize.grid import image_grid, save_png

COLUMNS = 8  # examples of a class in the picture
CLASSES = 10  # at most this many classes in the picture


def run(config: ConfigDict) -> dict[str, object]:
    """Measures the trained tokenizer on all validation images; returns the summary."""
    mesh = mesh_lib.make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        tokenizer = models.load_tokenizer(config, mesh)
        measured = measure(
            config, mesh, tokenizer.module, tokenizer.params, config.encode.batch_size
        )
        save_picture(config, measured)
    summary = {"tokenizer_step": tokenizer.step}
    summary |= {f"reconstruction_{name}": value for name, value in measured.numbers.items()}
    if measured.bit_usages:
        summary["reconstruction_bit_usages"] = measured.bit_usages
    if config.model.tokenizer.kind == "kl_vae":
        summary["reconstruction_of"] = "posterior mean"
    return update_summary(config.workdir, summary)


class Measured(NamedTuple):
    """What was measured of a tokenizer.

    Attributes:
      numbers: `psnr` (dB), `l1`, `l2`, the number of `images` and, of bits, what `bit_statistics`
        tells.
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
) -> Measured:
    """Reconstruction metrics over the validation images, or `limit` of them, evenly spread.

    Folders come class by class: the first images would be of a few classes.
    """
    source = data.open_images(config, validation=True)
    count = min(limit or len(source), len(source))
    source = data.Subset(source, np.arange(count) * len(source) // count)
    batches = data.eval_batches(
        source,
        image_size=config.data.image_size,
        crop="center",
        batch_size=batch_size,
        on_damaged=config.data.on_damaged,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    totals, originals, decoded = None, {}, {}
    for batch in batches:
        arrays = mesh_lib.put_batch(mesh, {name: batch[name] for name in ("image", "mask")})
        sums, pictures = _reconstruct(tokenizer, params, arrays["image"], arrays["mask"])
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


@functools.partial(jax.jit, static_argnums=0)
def _reconstruct(tokenizer, params, images, mask):
    images = data.to_float(images)
    codes = tokenizer.apply({"params": params}, images, method=tokenizer.encode)
    x = tokenizer.latents(codes)
    decoded = tokenizer.apply({"params": params}, x, method=tokenizer.decode)
    bits = x if x.dtype == np.uint8 else None  # real numbers are float32
    return reconstruction_sums(images, decoded, bits, mask), data.to_uint8(decoded)


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
