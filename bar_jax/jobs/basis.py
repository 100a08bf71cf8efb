"""The basis of a trained generator: what it looks like, how good it is, how it has changed.

As a job, and at every evaluation while it is trained, writes into `basis/`

    STEP.npy        A [N', N] of the evaluated parameters (the EMA if one is kept) at that step
    rows.png        its rows as images of the token grid (basis paper, Figures 3 and 8)
    prefixes.png    generated sequences decoded from their first k tokens (Figures 4 and 9)
    energy.png      energy of the validation images in the first k rows, beside other bases
    training.png    singular values, and how far A is from orthogonal, over training

The last two need matplotlib (the extra `figures`); training does without them where it is missing.
"""

import functools
import io
import logging
import math
import pathlib
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from bar_jax.bases import LEARNED, MATRIX, RANDOM, Basis, energy, is_basis, transform
from bar_jax.bases.projection import projected
from bar_jax.config import real_valued
from bar_jax.generators.settings import sampling_settings
from bar_jax.generators.shuffle import from_patches, to_patches
from bar_jax.jobs import encode, sample
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.files import write_atomically
from bar_jax.runtime.writer import MetricsWriter, update_summary
from bar_jax.tokenizers import make_tokenizer
from bar_jax.tokenizers.basis_fsq import BasisFSQ
from bar_jax.training import restore as models
from bar_jax.training.step import stream_key
from bar_jax.visualize import basis as pictures
from bar_jax.visualize.grid import save_png

logger = logging.getLogger(__name__)
IMAGES = 50_000  # that second moments are taken over, at most
BATCH = 256
OTHERS = ("identity", "frequency")  # bases that energies are drawn beside
PCA = "PCA"  # and these principal components
PREFIX_IMAGES = 8  # sequences that are decoded from prefixes
# What is told of a basis at an evaluation.
NUMBERS = (
    "basis_energy",
    "basis_energy_of_pca",
    "basis_orthogonality",
    "basis_largest_singular_value",
    "basis_smallest_singular_value",
)


class Moments(NamedTuple):
    """What a basis is measured by: second moments [N, N] of the tokens of each split."""

    train: np.ndarray
    validation: np.ndarray


def run(config: ConfigDict) -> dict[str, object]:
    """Measures and draws the basis of the workdir's generator; returns the summary."""
    if not is_watched(config):
        given = f"{config.model.basis.kind!r} of {config.model.tokenizer.kind}"
        expected = "one basis for all images, of real-valued tokens"
        raise InputError("model.basis.kind", given, expected)
    mesh = mesh_lib.make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        trained = models.load_generator(config, mesh)
        tokenizer = encode.load_tokenizer(config, mesh)
        codec = make_tokenizer(config)
        caches = (encode.open_split(config, split) for split in encode.SPLITS)
        moments = Moments(*(second_moment(config, trained.module, codec, c) for c in caches))
        keep(config, trained)
        found, curves = measure(config, trained, moments)
        draw(config, curves, trained, tokenizer)
    return update_summary(config.workdir, {"generator_step": trained.step, **found})


def is_watched(config: ConfigDict) -> bool:
    """Whether there is one basis for all images, of real-valued tokens."""
    return real_valued(config) and config.model.basis.kind != RANDOM


def second_moment(config: ConfigDict, generator: nn.Module, tokenizer: nn.Module, cache):
    """Mean of x x^T over images and channels, [N, N] float64, of up to IMAGES cached images.

    With their mirror images where the cache has them. Every process computes it whole.
    """
    key, sums, count = stream_key(config.seed, "basis/latents"), 0.0, 0
    spread = np.arange(min(IMAGES, len(cache))) * len(cache) // min(IMAGES, len(cache))
    for begin in range(0, len(spread), BATCH):
        rows = spread[begin : begin + BATCH]
        examples = cache.read(np.resize(rows, BATCH))
        own, counted = jax.random.fold_in(key, begin), np.arange(BATCH) < len(rows)
        for name in ("tokens", "tokens_mirrored")[: 1 + cache.mirrored]:
            part = _moments(generator, tokenizer, examples[name], own, counted)
            sums = sums + np.asarray(part, np.float64)
            count += len(rows)
    return sums / (count * generator.host.channels)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _moments(generator, tokenizer, tokens, key, counted):
    x = tokenizer.latents(tokens, jax.random.split(key, tokens.shape[0]))
    x = to_patches(x, generator.token_grid, generator.patch_size)
    return energy.second_moment(x * counted[:, None, None])[0]


def training(
    config: ConfigDict,
    mesh: jax.sharding.Mesh | None,
    module: nn.Module,
    second_moment: np.ndarray | None = None,
) -> dict[str, object]:
    """What `players` needs to know of a basis: how it starts, whether it is trained.

    Args:
      mesh: where the basis starts; None for a program that is compiled and not run.
      module: the generator or the tokenizer that it is a part of.
      second_moment: of the training tokens; without it, a basis that is made of the data set's
        tokens starts as a random one.
    """
    if not (module.basis.has_matrix or isinstance(module, BasisFSQ)):
        return {}
    section, matrix = config.model.basis, np.asarray(module.start(second_moment), np.float32)
    place = lambda x: x if mesh is None else jax.device_put(x, mesh_lib.replicated(mesh))
    start = {MATRIX: place(matrix)}
    if module.basis.kind != LEARNED:
        return {"fixed": start, "trained": lambda path: not is_basis(path)}
    select = lambda params: jax.tree_util.tree_map_with_path(lambda path, _: is_basis(path), params)
    last = optax.masked(projected(section.projection, section.delta), select)
    return {"pretrained": start, "last": last}


def evaluate(
    config: ConfigDict,
    moments: Moments,
    trained: models.Trained,
    tokenizer: models.Trained | None,
    writer: MetricsWriter,
) -> dict[str, float]:
    """Keeps, draws and measures A as it is now.

    Returns:
      See `numbers`.
    """
    keep(config, trained)
    found, curves = measure(config, trained, moments)
    try:
        writer.image(trained.step, "basis", draw(config, curves, trained, tokenizer))
    except InputError as error:  # no matplotlib: training need not have it
        logger.info("basis: %s", error)
    return found


def keep(config: ConfigDict, trained: models.Trained) -> None:
    """Writes A of this step."""
    matrix = trained.module.matrix_of(trained.params)
    if jax.process_index() == 0:
        folder = pathlib.Path(config.workdir) / "basis"
        folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, matrix)
        write_atomically(folder / f"{trained.step:08d}.npy", buffer.getvalue())


def draw(
    config: ConfigDict,
    curves: dict[str, np.ndarray],
    trained: models.Trained,
    tokenizer: models.Trained | None,
) -> np.ndarray:
    """Writes the pictures; without a tokenizer there are no `prefixes.png`.

    Args:
      curves: as `measure` gives them.

    Returns:
      The picture of the rows, uint8 [H, W, 3].

    Raises:
      InputError: matplotlib is not installed; the pictures that do without it are written.
    """
    folder, first = pathlib.Path(config.workdir) / "basis", jax.process_index() == 0
    generator, matrix = trained.module, trained.module.matrix_of(trained.params)
    rows = pictures.rows_picture(matrix, generator.grid, labels=True)
    if first:
        save_png(folder / "rows.png", rows)
    if tokenizer is not None:
        decoded = prefixes(config, trained, tokenizer)
        if first:
            save_png(folder / "prefixes.png", pictures.progressive_picture(decoded))
    if not first:
        return rows
    others = {name: curve for name, curve in curves.items() if name != PCA}
    drawn = pictures.draw_prefix_energy(others, curves[PCA])
    write_atomically(folder / "energy.png", drawn)
    section = config.model.basis
    bounded = section.kind == LEARNED and section.projection == "soft"
    drawn = pictures.draw_orthogonality(history(folder), section.delta if bounded else None)
    write_atomically(folder / "training.png", drawn)
    return rows


def history(folder: pathlib.Path) -> list[tuple[int, np.ndarray, float]]:
    """Step, singular values and norm of A A^T - I of every A that was kept."""
    paths = sorted(folder.glob("[0-9]*.npy"))
    return [(int(path.stem), *_spectrum(path, path.stat().st_mtime_ns)) for path in paths]


@functools.cache  # of a file as it was written: each is read once in a run
def _spectrum(path: pathlib.Path, written: int) -> tuple[np.ndarray, float]:
    del written
    return spectrum(np.load(path))


def spectrum(matrix: np.ndarray) -> tuple[np.ndarray, float]:
    """Singular values of A, largest first, and the Frobenius norm of A A^T - I, in float64."""
    matrix = np.asarray(matrix, np.float64)
    norm = np.linalg.norm(matrix @ matrix.T - np.eye(len(matrix)))
    return np.linalg.svd(matrix, compute_uv=False), float(norm)


def prefixes(config: ConfigDict, trained: models.Trained, tokenizer: models.Trained) -> np.ndarray:
    """Generated sequences, one of each of the first classes, decoded from their first tokens.

    Returns:
      uint8 [K, B, H, W, 3], for the Ks of the paper: 1, 25, 50, ...; eighths of short sequences.
    """
    labels = np.arange(min(config.data.num_classes, PREFIX_IMAGES), dtype=np.int32)
    key = stream_key(config.seed, "basis/prefixes")
    y = _sequences(
        trained.module,
        sampling_settings(config),
        trained.params,
        labels,
        jax.random.split(key, len(labels)),
        jnp.float32(config.sample.guidance_scale),
        jnp.float32(config.sample.temperature),
    )
    module = trained.module
    y, matrix = mesh_lib.whole(y), jnp.asarray(module.matrix_of(trained.params))
    inverse = transform.inverse_matrix(matrix, module.basis.inverse)

    def decode(x):
        x = from_patches(x, module.token_grid, module.patch_size)
        return mesh_lib.whole(sample.pixels(tokenizer.module, tokenizer.params, x))

    counts = pictures.prefix_counts(y.shape[1], min(25, max(1, y.shape[1] // 8)))
    return pictures.progressive_decoding(y, inverse, decode, counts)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sequences(generator, settings, params, labels, keys, *scales):
    """Generated y [B, N', d]."""
    return generator.sample_sequence(params, labels, keys, settings, *scales)


def measure(
    config: ConfigDict, trained: models.Trained, moments: Moments
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """How a trained basis stands beside others.

    Returns:
      Its `numbers`, and the curves [N'] of how early the validation images' energy is gathered: by
      this basis under its kind, by `OTHERS`, and by the training images' PCA under `PCA`.
    """
    generator, kind = trained.module, config.model.basis.kind
    bases = {kind: generator.matrix_of(trained.params)}
    for name in OTHERS:
        bases.setdefault(name, Basis(name).matrix(generator.grid, generator.native_order))
    curves = {name: energy.prefix_energy(A, moments.validation) for name, A in bases.items()}
    curves[PCA] = energy.pca_energy(*moments, len(bases[kind]))
    return numbers(bases[kind], curves[kind], curves[PCA]), curves


def numbers(matrix: np.ndarray, curve: np.ndarray, best: np.ndarray) -> dict[str, float]:
    """How early a basis A [N', N] gathers energy, and how orthogonal it is.

    Args:
      curve, best: [N'] prefix energy of A, and of the PCA that it is compared with.

    Returns:
      `basis_energy`, area under the curve; `basis_energy_of_pca`, that as a share of the PCA's;
      `basis_orthogonality`, the norm of A A^T - I; and the extreme singular values.
    """
    area = energy.energy_area(curve)
    values, norm = spectrum(matrix)
    found = (area, area / energy.energy_area(best), norm, float(values[0]), float(values[-1]))
    assert all(map(math.isfinite, found))
    return dict(zip(NUMBERS, found, strict=True))
