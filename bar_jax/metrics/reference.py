"""What samples are compared with: images, or stored statistics, in the eyes of networks.

What is computed is kept in the workdir's `reference/`, by the fingerprint of the images and the
digest of the network.
"""

import hashlib
import io
import pathlib
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from bar_jax import data
from bar_jax.data import image_sets
from bar_jax.metrics import KINDS
from bar_jax.metrics.features import FeatureNetwork, extract
from bar_jax.metrics.moments import Gaussian, gaussian
from bar_jax.metrics.scores import Reference, compared, outputs_of
from bar_jax.runtime import files, preemption
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.progress import progress

CROP = "adm"  # of the images that the published reference statistics are of
ROWS = 10_000  # images whose features are kept one by one, as many as ADM's files hold
SPLITS = ("train", "validation")


def stored_names() -> dict[str, tuple[str, ...]]:
    """Under which names an .npz holds mean and covariance, by output."""
    return {kind.moments: kind.stored for kind in KINDS.values() if kind.moments and kind.compares}


def open_source(config: ConfigDict) -> tuple[Sequence, str]:
    """The images of `evaluate.reference`, and what they are called."""
    spec, section = config.evaluate.reference, config.data
    if spec in SPLITS:
        source = data.open_images(config, validation=spec == "validation")
        name = " ".join(filter(None, (section.source, section.name or section.path, spec)))
        return source, name
    return image_sets.open_set(spec, section.num_classes), spec


class Opened(NamedTuple):
    """`evaluate.reference`, before a network has seen it.

    Attributes:
      name: in words.
      source: its images; None: it has statistics alone.
      stored: statistics by output.
      missing: metric -> what it lacks for that.
      images: metric -> how many images it is of; of stored statistics that is not known.
    """

    name: str
    source: Sequence | None
    stored: dict[str, Gaussian]
    missing: dict[str, str]
    images: dict[str, int]


def open_reference(config: ConfigDict, metrics: Collection[str]) -> Opened:
    """Opens `evaluate.reference` for some metrics.

    Raises:
      InputError: it cannot be opened, or is an .npz of images of another size, or one that
        suffices for none of the metrics.
    """
    spec, size = config.evaluate.reference, config.data.image_size
    stored, missing, name = {}, {}, spec
    if image_sets.is_npz(spec):
        missing = lacking(pathlib.Path(spec), metrics)
        stored, source = _read_npz(pathlib.Path(spec))
        if source is not None and source.size != (size, size):
            found = f"images of {source.size[1]} x {source.size[0]} px"
            raise InputError(spec, found, f"{size} x {size} px, as the samples")
    else:
        source, name = open_source(config)
    images = {}
    for metric in compared(metrics) if source is not None else ():
        kind = KINDS[metric]
        if kind.moments not in stored:
            images[metric] = min(len(source), ROWS) if kind.rows else len(source)
    return Opened(name, source, stored, missing, images)


def look_at(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    networks: Sequence[FeatureNetwork],
    needed: Collection[str],
    opened: Opened,
) -> Reference:
    """What the reference is in the eyes of networks, computed or read.

    Args:
      networks: those whose features are compared.
      needed: metrics; of an .npz with statistics, images are looked at only for those that need
        more.
    """
    spec, (name, source, stored, *_) = config.evaluate.reference, opened
    is_npz = image_sets.is_npz(spec)
    if is_npz:
        digest = files.digest(spec)
    else:
        digest = image_sets.fingerprint(source)
    settings = {
        "reference": name,
        "reference_digest": digest,
        "reference_images": "as stored" if source is None else len(source),
        "reference_crop": "none" if is_npz else CROP,
    }
    gaussians, rows = {}, {}
    for network in networks if source is not None else ():
        if not _stored_whole(needed, network, stored):
            own, own_rows = statistics(config, mesh, network, source, digest)
            gaussians |= own
            rows |= own_rows
    if source is not None and stored:
        settings["reference_images"] = f"as stored; {len(source)} for other statistics"
    return Reference(name, settings, gaussians | stored, rows)


def lacking(path: pathlib.Path, metrics: Collection[str]) -> dict[str, str]:
    """Metrics that an .npz does not suffice for, as ADM's or pytorch-fid's, with the reason.

    Raises:
      InputError: the file cannot be read, or it suffices for none of those that are compared.
    """
    names = image_sets.npz_names(path)
    wanted, reasons = compared(metrics), {}
    for metric in wanted if image_sets.IMAGES not in names else ():
        kind = KINDS[metric]
        if kind.rows:
            reasons[metric] = f"{path} holds no images ({image_sets.IMAGES})"
        elif not set(kind.stored) <= set(names):
            keys = " and ".join(kind.stored)
            reasons[metric] = f"{path} holds neither images ({image_sets.IMAGES}) nor {keys}"
    if wanted and len(reasons) == len(wanted):
        expected = (
            f"{image_sets.IMAGES} (images), or statistics such as ADM's mu, sigma, mu_s, sigma_s"
        )
        expected = f"{expected}: what {' or '.join(wanted)} can be had of"
        raise InputError(path, ", ".join(names) or "nothing", expected)
    return reasons


def _stored_whole(metrics, network, stored) -> bool:
    """Whether stored statistics are all that metrics need of a network."""
    kinds = [kind for kind in map(KINDS.get, compared(metrics)) if kind.network == network.name]
    return all(not kind.rows and kind.moments in stored for kind in kinds)


def _read_npz(path: pathlib.Path):
    """Statistics of an .npz by output, and its images, None if there are none."""
    names = image_sets.npz_names(path)
    stored = {}
    for output, keys in stored_names().items():
        if set(keys) <= set(names):
            mean, covariance = (
                np.array(image_sets.read_array(path, key), np.float64) for key in keys
            )
            if mean.ndim != 1 or covariance.shape != (len(mean),) * 2:
                found = f"{keys[0]} {list(mean.shape)} and {keys[1]} {list(covariance.shape)}"
                raise InputError(path, found, "[D] and [D, D]")
            stored[output] = Gaussian(mean, covariance)
    images = image_sets.open_npz(path, None) if image_sets.IMAGES in names else None
    return stored, images


def statistics(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    network: FeatureNetwork,
    source: Sequence,
    digest: str,
    crop: str = CROP,
) -> tuple[dict[str, Gaussian], dict[str, np.ndarray]]:
    """Gaussians and rows of a set of images by output, from `reference/` if they are there.

    Args:
      digest: of the images.
      crop: `adm` or `center`, to `data.image_size`.
    """
    size = config.data.image_size
    names = stored_names()
    outputs = outputs_of(m for m in compared(KINDS) if KINDS[m].network == network.name)
    moments, rows = outputs["moments"], outputs["rows"]
    identity = f"{digest} {size} {crop} {network.weights} {network.resize}"
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    path = pathlib.Path(config.workdir) / "reference" / f"{network.name}-{key}.npz"
    wanted = {*map(_rows_key, rows), *(key for output in moments for key in names[output])}
    # One that was written before a metric came to the network lacks what that needs.
    is_kept = lambda: path.is_file() and wanted <= {*image_sets.npz_names(path)}
    if mesh_lib.broadcast_from_first(is_kept):
        arrays = {name: image_sets.read_array(path, name) for name in image_sets.npz_names(path)}
    else:
        features = extract(
            mesh,
            [network],
            batches_of(config, mesh, source, crop, f"reference of {network.name}"),
            moments=moments,
            rows=rows,
            keep=spread_mask(len(source), ROWS),
        )
        arrays = {}
        for output in moments:
            arrays |= dict(zip(names[output], gaussian(features.moments[output]), strict=True))
        arrays |= {_rows_key(output): features.rows[output] for output in rows}
        if jax.process_index() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            np.savez(buffer, **arrays)
            files.write_atomically(path, buffer.getvalue())
    gaussians = {output: Gaussian(*(arrays[key] for key in names[output])) for output in moments}
    return gaussians, {output: arrays[_rows_key(output)] for output in rows}


def _rows_key(output: str) -> str:
    return f"rows_{output.replace('/', '_')}"


def spread_mask(count: int, limit: int) -> np.ndarray:
    """bool [count], True for `limit` indices spread over all."""
    keep = np.zeros(count, bool)
    keep[np.linspace(0, count - 1, min(limit, count)).astype(int)] = True
    return keep


def batches_of(
    config: ConfigDict, mesh: jax.sharding.Mesh, source: Sequence, crop: str, what: str
) -> Iterator[dict]:
    """This process's share of the batches of a set of images, with a bar."""
    share = mesh_lib.batch_share(mesh)
    batches = data.eval_batches(
        source,
        image_size=config.data.image_size,
        crop=crop,
        batch_size=config.evaluate.batch_size,
        on_damaged=config.data.on_damaged,
        rows=share.rows(config.evaluate.batch_size),
    )
    with progress(what, len(source), "image") as advance:
        for batch in batches:
            preemption.check(f"{what}: nothing is kept")
            yield batch
            advance(int((batch["index"] >= 0).sum()) * share.count)
