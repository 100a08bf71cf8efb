"""A basis looked at: its rows, what early tokens are worth, its numbers, and how it has changed.

Written into the workdir's `basis/`:

    STEP.npy        A [N', N] of the evaluated parameters (the EMA if one is kept) at that step
    rows.png        its rows as images of the token grid (basis paper, Figures 3 and 8)

and of the basis in front of a generator of real-valued tokens

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

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bar_jax.bases import LEARNED, RANDOM, Basis, energy, transform
from bar_jax.data import codec
from bar_jax.generators import sampling_settings
from bar_jax.generators.request import Request
from bar_jax.generators.shuffle import from_patches
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.files import write_atomically
from bar_jax.runtime.writer import MetricsWriter
from bar_jax.tokenizers import real_valued
from bar_jax.training import restore
from bar_jax.training.basis import Moments
from bar_jax.training.step import stream_key
from bar_jax.visualize import basis as pictures
from bar_jax.visualize.grid import save_png

logger = logging.getLogger(__name__)
OTHERS = ("identity", "frequency")  # bases that energies are drawn beside
PCA = "PCA"  # and these principal components
PREFIX_IMAGES = 8  # sequences that are decoded from prefixes
# What an evaluation reports of a basis.
NUMBERS = (
    "basis_energy",
    "basis_energy_of_pca",
    "basis_orthogonality",
    "basis_largest_singular_value",
    "basis_smallest_singular_value",
)


def is_watched(config: ConfigDict) -> bool:
    """Whether there is one basis for all images, of real-valued tokens."""
    return real_valued(config) and config.model.basis.kind != RANDOM


def evaluate_generator(
    config: ConfigDict,
    moments: Moments,
    trained: restore.Trained,
    tokenizer: restore.Trained | None,
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


def evaluate_tokenizer(
    config: ConfigDict, trained: restore.Trained, writer: MetricsWriter
) -> dict[str, float]:
    """Keeps and draws A as it is now.

    Returns:
      `basis_orthogonality`, the norm of A A^T - I, and A's extreme singular values.
    """
    keep(config, trained)
    writer.image(trained.step, "basis", draw_rows(pathlib.Path(config.workdir) / "basis", trained))
    values, norm = spectrum(trained.module.matrix_of(trained.params))
    found = (norm, float(values[0]), float(values[-1]))
    return dict(zip(NUMBERS[2:], found, strict=True))


def draw_rows(folder: pathlib.Path, trained: restore.Trained) -> np.ndarray:
    """Draws the rows of A into `rows.png` of a folder; returns the picture, uint8 [H, W, 3]."""
    module = trained.module
    rows = pictures.rows_picture(module.matrix_of(trained.params), module.grid, labels=True)
    if jax.process_index() == 0:
        save_png(folder / "rows.png", rows)
    return rows


def keep(config: ConfigDict, trained: restore.Trained) -> None:
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
    trained: restore.Trained,
    tokenizer: restore.Trained | None,
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


def prefixes(
    config: ConfigDict, trained: restore.Trained, tokenizer: restore.Trained
) -> np.ndarray:
    """Generated sequences, one of each of the first classes, decoded from their first tokens.

    Returns:
      uint8 [K, B, H, W, 3], for the Ks of the paper: 1, 25, 50, ...; eighths of short sequences.
    """
    labels = np.arange(min(config.data.num_classes, PREFIX_IMAGES), dtype=np.int32)
    request = Request(
        labels=labels,
        keys=jax.random.split(stream_key(config.seed, "basis/prefixes"), len(labels)),
        guidance_scale=jnp.float32(config.sample.guidance_scale),
        temperature=jnp.float32(config.sample.temperature),
        settings=sampling_settings(config),
    )
    module = trained.module
    y = mesh_lib.gather_to_host(_sequences(module, trained.params, request))
    matrix = jnp.asarray(module.matrix_of(trained.params))
    inverse = transform.inverse_matrix(matrix, module.basis.inverse)

    def decode(x):
        x = from_patches(x, module.token_grid, module.patch_size)
        return mesh_lib.gather_to_host(codec.pixels(tokenizer.module, tokenizer.params, x))

    counts = pictures.prefix_counts(y.shape[1], min(25, max(1, y.shape[1] // 8)))
    return pictures.progressive_decoding(y, inverse, decode, counts)


@functools.partial(jax.jit, static_argnums=0)
def _sequences(generator, params, request):
    """Generated y [B, N', d]."""
    return generator.sample_sequence(params, request)


def measure(
    config: ConfigDict, trained: restore.Trained, moments: Moments
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
