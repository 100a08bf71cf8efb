"""How well a tokenizer reconstructs the validation images.

Writes `reconstructions.png` (originals above their reconstructions, a pair of rows per class) and
into `summary.json` the numbers, named `reconstruction_...`. Of KL-16 the mean of the posterior is
decoded, not a sample of it; where tokens are no bits, nothing is told of bits. What cannot be
measured is named `reconstruction_..._omitted`, with the reason: SSIM and LPIPS of small images,
LPIPS without `evaluate.weights.vgg16` and `evaluate.weights.lpips`.
"""

import functools
import pathlib
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from bar_jax import data, frozen, models
from bar_jax import mesh as mesh_lib
from bar_jax.errors import InputError
from bar_jax.metrics.reconstruction import (
    LPIPS_SMALLEST,
    SSIM_WINDOW,
    bit_statistics,
    reconstruction_sums,
)
from bar_jax.pretrained.lpips import PACKAGE
from bar_jax.pretrained.networks import init_network, read_network
from bar_jax.training.writer import update_summary
from bar_jax.visualize.grid import image_grid, save_png

COLUMNS = 8  # examples of a class in the picture
CLASSES = 10  # at most this many classes in the picture
LPIPS_NETWORKS = ("vgg16", "lpips")


def run(config: ConfigDict) -> dict[str, object]:
    """Measures the trained tokenizer on all validation images; returns the summary."""
    mesh = mesh_lib.make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        reasons = omitted(config)
        networks = None if "lpips" in reasons else load_lpips(config, mesh)
        tokenizer = models.load_tokenizer(config, mesh)
        measured = measure(
            config,
            mesh,
            tokenizer.module,
            tokenizer.params,
            config.encode.batch_size,
            networks=networks,
        )
        save_picture(config, measured)
    summary = {"tokenizer_step": tokenizer.step}
    summary |= {f"reconstruction_{name}": value for name, value in measured.numbers.items()}
    summary |= {f"reconstruction_{name}_omitted": reason for name, reason in reasons.items()}
    if measured.bit_usages:
        summary["reconstruction_bit_usages"] = measured.bit_usages
    if config.model.tokenizer.kind == "kl_vae":
        summary["reconstruction_of"] = "posterior mean"
    return update_summary(config.workdir, summary)


def omitted(config: ConfigDict) -> dict[str, str]:
    """Which of SSIM and LPIPS are not measured, and why: name -> reason."""
    side, weights = config.data.image_size, config.evaluate.weights
    reasons = {}
    if side < SSIM_WINDOW:
        reasons["ssim"] = f"images of {side} px, its window is {SSIM_WINDOW}"
    if not any(weights[name] for name in LPIPS_NETWORKS):
        fields = " and ".join(f"evaluate.weights.{name}" for name in LPIPS_NETWORKS)
        reasons["lpips"] = f"no {fields}"
    elif side < LPIPS_SMALLEST:
        reasons["lpips"] = f"images of {side} px, VGG16 needs {LPIPS_SMALLEST}"
    return reasons


def load_lpips(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, dict]:
    """Parameters of VGG16 and of LPIPS's heads, by name, on the mesh.

    Raises:
      InputError: if one of the two is not named; a file that cannot be read, or is another's.
    """
    params = {}
    for name in LPIPS_NETWORKS:
        path, source = config.evaluate.weights[name], frozen.SOURCES[name]
        if not path:
            raise InputError(
                f"evaluate.weights.{name}",
                "no file",
                f"{source.file} ({source.origin}); or {PACKAGE}, the package of that name; or "
                "neither of both networks, to leave out LPIPS",
            )
        layout = models.param_shapes(functools.partial(init_network, name), mesh)
        params[name] = mesh_lib.place(read_network(name, path), layout)
    return params


class Measured(NamedTuple):
    """What was measured of a tokenizer.

    Attributes:
      numbers: what `reconstruction_sums` sums, meant over images, the number of `images` and, of
        bits, what `bit_statistics` tells.
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

    Folders come class by class: the first images would be of a few classes. `networks` are LPIPS's;
    None leaves it out.
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


@functools.partial(jax.jit, static_argnums=0)
def _reconstruct(tokenizer, params, networks, images, mask):
    images = data.to_float(images)
    codes = tokenizer.apply({"params": params}, images, method=tokenizer.encode)
    x = tokenizer.latents(codes)
    decoded = tokenizer.apply({"params": params}, x, method=tokenizer.decode)
    bits = x if x.dtype == np.uint8 else None  # real numbers are float32
    sums = reconstruction_sums(images, decoded, bits, mask, networks)
    return sums, data.to_uint8(decoded)


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
