"""How well a tokenizer reconstructs the validation images.

Writes `reconstructions.png` (originals above their reconstructions, a pair of rows per class) and
into `summary.json` the numbers, named `reconstruction_...`. Of KL-16 the mean of the posterior is
decoded, not a sample of it; where tokens are no bits, nothing is said of bits. What cannot be
measured is named `reconstruction_..._omitted`, with the reason: SSIM and LPIPS of small images,
LPIPS without `evaluate.weights.vgg16` and `evaluate.weights.lpips`, rFID (`reconstruction_fid`)
without `evaluate.weights.inception` or of a single image. What is to be known of a distance of few
images is named `reconstruction_..._note`.

rFID is between the validation images (shorter side resized bicubically, centre crop) and their
reconstructions, rounded to 8 bits. `reconstruction_classifier_fid` is the same in the eyes of the
data set's own classifier, if `evaluate.metrics` has `classifier_fid`.
"""

import functools
import logging
from collections.abc import Collection, Sequence

import jax
from ml_collections import ConfigDict

from bar_jax import data
from bar_jax.data import image_sets
from bar_jax.metrics import KINDS, feature_networks, reference
from bar_jax.metrics.features import extract, sizes_of
from bar_jax.metrics.frechet import frechet_distance
from bar_jax.metrics.moments import gaussian
from bar_jax.metrics.reconstruction import (
    LPIPS_SMALLEST,
    SSIM_WINDOW,
)
from bar_jax.metrics.scores import notes
from bar_jax.metrics.scores import omitted as omitted_of_few
from bar_jax.metrics.tokenizer import CROP, measure, rounded, save_picture
from bar_jax.pretrained.networks import check_file, init_network, read_network
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime.job import Job, batches_of
from bar_jax.runtime.writer import environment, update_summary
from bar_jax.tokenizers import kind_of
from bar_jax.training import restore

logger = logging.getLogger(__name__)
LPIPS_NETWORKS = ("vgg16", "lpips")


def run(config: ConfigDict) -> dict[str, object]:
    """Measures the trained tokenizer on all validation images; returns the summary."""
    mesh = mesh_lib.make_mesh(**config.mesh)
    source = data.open_images(config, validation=True)
    with jax.set_mesh(mesh):
        reasons = omitted(config, len(source))
        networks = None if "lpips" in reasons else load_lpips(config, mesh)
        tokenizer = restore.load_tokenizer(config, mesh)
        measured = measure(
            config,
            mesh,
            tokenizer.module,
            tokenizer.params,
            config.encode.batch_size,
            networks=networks,
        )
        save_picture(config, measured)
        distances, settings = frechet_distances(config, mesh, tokenizer, source, reasons)
    numbers = measured.numbers | distances
    summary = {"tokenizer_step": tokenizer.step}
    summary |= {f"reconstruction_{name}": value for name, value in numbers.items()}
    summary |= {f"reconstruction_{name}_omitted": reason for name, reason in reasons.items()}
    summary |= {f"reconstruction_{name}": value for name, value in settings.items()}
    if measured.bit_usages:
        summary["reconstruction_bit_usages"] = measured.bit_usages
    if decoded := kind_of(config).decoded:
        summary["reconstruction_of"] = decoded
    own = lambda name: name.startswith("reconstruction_")
    return update_summary(config.workdir, summary, own)


def omitted(config: ConfigDict, count: int) -> dict[str, str]:
    """What is not measured of a number of images, and why: name -> reason.

    All but the Frechet distances are means over images, which one is enough for.
    """
    side, weights = config.data.image_size, config.evaluate.weights
    reasons = {}
    if side < SSIM_WINDOW:
        reasons["ssim"] = f"images of {side} px, its window is {SSIM_WINDOW}"
    if not any(weights[name] for name in LPIPS_NETWORKS):
        fields = " and ".join(f"evaluate.weights.{name}" for name in LPIPS_NETWORKS)
        reasons["lpips"] = f"no {fields}"
    elif side < LPIPS_SMALLEST:
        reasons["lpips"] = f"images of {side} px, VGG16 needs {LPIPS_SMALLEST}"
    if not weights.inception:
        reasons["fid"] = "no evaluate.weights.inception"
    distances = {"fid", "classifier_fid"} & {"fid", *config.evaluate.metrics}
    few = omitted_of_few(sorted(distances - reasons.keys()), count, {})
    for metric, reason in few.items():
        logger.warning("reconstruct: no %s: %s", metric, reason)
    return reasons | few


def load_lpips(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, dict]:
    """Parameters of VGG16 and of LPIPS's heads, by name, on the mesh.

    Raises:
      InputError: if one of the two is not named; a file that cannot be read, or is another's.
    """
    paths = config.evaluate.weights
    for name in LPIPS_NETWORKS:
        if not paths[name]:
            otherwise = "neither of both networks, to leave out LPIPS"
            check_file(name, "", f"evaluate.weights.{name}", otherwise)
    params = {}
    for name in LPIPS_NETWORKS:
        layout = restore.param_shapes(functools.partial(init_network, name), mesh)
        params[name] = mesh_lib.place(read_network(name, paths[name]), layout)
    return params


def frechet_distances(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    tokenizer: restore.Trained,
    source: Sequence,
    without: Collection[str],
) -> tuple[dict[str, object], dict[str, object]]:
    """Frechet distances of the validation images and their reconstructions.

    Args:
      source: the validation images.
      without: metrics that are left out.

    Returns:
      The numbers, each with its note, and what they depend on.
    """
    chosen = {"fid"} | ({"classifier_fid"} & set(config.evaluate.metrics))
    needs = {metric: KINDS[metric] for metric in sorted(chosen - set(without))}
    if not needs:
        return {}, {}
    feature_networks.check(config.evaluate.weights, [n.network for n in needs.values()], "metric")
    networks = [feature_networks.load(config, mesh, need.network) for need in needs.values()]
    sizes, images = sizes_of(networks, config.data.image_size), dict.fromkeys(needs, len(source))
    remarks = notes(needs, len(source), images, sizes)
    for metric, note in remarks.items():
        logger.warning("reconstruct: %s: %s", metric, note)
    digest, originals = image_sets.fingerprint(source), {}
    for network in networks:
        originals |= reference.statistics(config, mesh, network, source, digest, CROP)[0]

    def decoded():
        for batch in reference.batches_of(config, mesh, source, CROP, "reconstructions"):
            images = mesh_lib.put_batch(mesh, {"image": batch["image"]})["image"]
            yield batch | {"image": rounded(tokenizer.module, tokenizer.params, images)}

    outputs = [need.moments for need in needs.values()]
    found = extract(mesh, networks, decoded(), moments=outputs).moments
    numbers = {
        metric: frechet_distance(gaussian(found[need.moments]), originals[need.moments])
        for metric, need in needs.items()
    }
    numbers |= {f"{metric}_note": note for metric, note in remarks.items()}
    settings = {f"features_{n.name}": f"{n.weights}; resized {n.resize}" for n in networks}
    settings |= {"crop": CROP, "originals_digest": digest, **environment()}
    return numbers, settings


JOB = Job(run, batches_of("encode"))
