"""Features of images in the eyes of frozen networks, over batches and processes.

A network's output is named `NETWORK/OUTPUT`, such as `inception/pool`. What is kept of an output
is its moments (float64 sums, for Frechet distances), its rows (a vector per image), or both.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from bar_jax.metrics.moments import Moments, add, merge, zero_moments
from bar_jax.runtime import mesh as mesh_lib

Apply = Callable[[dict, jax.Array], dict[str, jax.Array]]


class FeatureNetwork(NamedTuple):
    """A frozen network that images are measured by.

    Attributes:
      name: `inception`, `dinov2_l14`, `clip_l14` or `classifier`.
      apply: (params, images uint8 [B, H, W, 3]) -> its outputs by name, float32 [B, D]. It resizes
        the images itself, and computes in whole float32 numbers.
      params: on the mesh.
      weights: the file they are from, and its digest.
      resize: how images are resized, in words.
    """

    name: str
    apply: Apply
    params: dict
    weights: str
    resize: str


class Features(NamedTuple):
    """Features of a set of images; the same on every process.

    Attributes:
      count: number of images, without damaged ones and padding.
      moments: by output.
      rows: by output, float32 [M, D], of the images that rows were kept of, in their order.
      labels: [M] of these images.
    """

    count: int
    moments: dict[str, Moments]
    rows: dict[str, np.ndarray]
    labels: np.ndarray


def sizes_of(networks: Sequence[FeatureNetwork], side: int) -> dict[str, int]:
    """D, features of an image of `side` px, by output: of the shapes alone, nothing is computed."""
    image, sizes = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8), {}
    for network in networks:
        outputs = jax.eval_shape(network.apply, network.params, image)
        sizes |= {f"{network.name}/{output}": x.shape[-1] for output, x in outputs.items()}
    return sizes


def extract(
    mesh: jax.sharding.Mesh,
    networks: Sequence[FeatureNetwork],
    batches: Iterable[Mapping[str, object]],
    *,
    moments: Sequence[str] = (),
    rows: Sequence[str] = (),
    keep: np.ndarray | None = None,
) -> Features:
    """Shows images to networks and keeps what is asked for of their outputs.

    While the devices compute a batch, the CPU adds up the one before and reads the next. The
    numbers do not depend on how images are put into batches nor, up to the rounding of float32
    convolutions, on processes and devices; rows come in the order of `index`.

    Args:
      mesh: its `data` and `fsdp` axes cut the batches.
      batches: of this process: `image` uint8 [b, H, W, 3] (numpy, or a global array on the mesh),
        `index` [b] of an image in its set, `label` [b] and `mask` [b], False where a row is none.
      moments, rows: outputs of which these are kept.
      keep: bool [N]; rows are kept of the images whose index it marks. None: of all.
    """
    sums: dict[str, Moments] = {}
    kept: dict[str, list[np.ndarray]] = {name: [] for name in (*rows, "index", "label")}
    count, pending, own = 0, None, mesh_lib.batch_share(mesh).first
    wanted = frozenset((*moments, *rows))
    for batch in batches:
        images = batch["image"]
        if not isinstance(images, jax.Array):
            images = mesh_lib.put_batch(mesh, {"image": images})["image"]
        outputs = {}
        for network in networks:
            chosen = tuple(sorted(name for name in wanted if name.startswith(f"{network.name}/")))
            if chosen:
                outputs |= _outputs(network.apply, network.name, chosen, network.params, images)
        if pending is not None:
            count += _absorb(*pending, sums, kept, moments, rows, keep)
        # Rows that an earlier process holds too are counted there.
        pending = outputs, {**batch, "mask": np.asarray(batch["mask"]) & own}
    if pending is not None:
        count += _absorb(*pending, sums, kept, moments, rows, keep)
    return _of_all(count, sums, kept, rows)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _outputs(apply, name, chosen, params, images):
    outputs = apply(params, images)
    outputs = {f"{name}/{output}": value for output, value in outputs.items()}
    return {output: mesh_lib.constrain_batch(outputs[output]) for output in chosen}


def _absorb(outputs, batch, sums, kept, moments, rows, keep) -> int:
    """Adds a batch to what is kept; returns its number of images."""
    local = {name: mesh_lib.local_rows(value) for name, value in outputs.items()}
    mask, index = batch["mask"], np.asarray(batch["index"])
    for name in moments:
        if name not in sums:
            sums[name] = zero_moments(local[name].shape[-1])
        sums[name] = add(sums[name], local[name], mask)
    chosen = mask.copy()
    if keep is not None:
        chosen[mask] = keep[index[mask]]
    for name in rows:
        kept[name].append(local[name][chosen])
    kept["index"].append(index[chosen].astype(np.int64))
    kept["label"].append(np.asarray(batch["label"])[chosen].astype(np.int32))
    return int(mask.sum())


def _of_all(count, sums, kept, rows) -> Features:
    """The features of all processes together."""
    count = int(sum(int(share[0]) for share in mesh_lib.from_all(np.array([count], np.int64))))
    total = {}
    for name, own in sums.items():
        shares = (mesh_lib.from_all(part) for part in (own.sum, own.outer))
        counts = mesh_lib.from_all(np.array([own.count], np.int64))
        parts = zip(counts, *shares, strict=True)
        total[name] = functools.reduce(merge, (Moments(int(n[0]), s, o) for n, s, o in parts))
    whole = {
        name: np.concatenate(mesh_lib.from_all(np.concatenate(parts)))
        for name, parts in kept.items()
        if parts
    }
    if not whole:
        return Features(count, total, {}, np.zeros(0, np.int32))
    order = np.argsort(whole["index"], kind="stable")
    return Features(
        count, total, {name: whole[name][order] for name in rows}, whole["label"][order]
    )
