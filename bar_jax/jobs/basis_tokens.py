"""A basis inside a tokenizer: how it starts, and how it stands while it is trained."""

import functools
import pathlib

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from bar_jax import data, models, workdir
from bar_jax import mesh as mesh_lib
from bar_jax.bases import energy, make_basis
from bar_jax.config import basis_inside
from bar_jax.jobs import basis
from bar_jax.training.writer import MetricsWriter
from bar_jax.visualize import basis as pictures
from bar_jax.visualize.grid import save_png

CROP = "center"
BATCH = 256


def starts_from_plain(config: ConfigDict) -> bool:
    """Whether a tokenizer with a basis starts from one without: `init_from` has such a one."""
    if not (config.init_from and basis_inside(config)):
        return False
    return not basis_inside(workdir.read_config(config.init_from))


def plain_params(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict:
    """Parameters of the tokenizer without a basis in `init_from`; all but the basis's."""
    plain = config.copy_and_resolve_references()
    plain.model.tokenizer.kind, plain.workdir = "bar_fsq", config.init_from
    return models.load_tokenizer(plain, mesh).params


def is_made_of_latents(config: ConfigDict, folder: pathlib.Path) -> bool:
    """Whether A starts as what latents say, and training is not begun in `folder`."""
    needed = basis_inside(config) and make_basis(config).needs_tokens
    return needed and not mesh_lib.first_says(lambda: workdir.begun(folder))


def second_moment(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    tokenizer: nn.Module,
    params: dict,
    source: data.Subset,
) -> np.ndarray:
    """Mean of z z^T over training images and channels, [N, N] float64: what PCA is made of.

    The latents of at most `basis.IMAGES` images, evenly spread, as the encoder makes them when
    training starts.
    """
    count = min(basis.IMAGES, len(source))
    batches = data.eval_batches(
        data.Subset(source, np.arange(count) * len(source) // count),
        image_size=config.data.image_size,
        crop=CROP,
        batch_size=config.train_tokenizer.batch_size,
        on_damaged=config.data.on_damaged,
        rows=mesh_lib.batch_share(mesh).rows(config.train_tokenizer.batch_size),
    )
    total, images = 0.0, 0
    for batch in batches:
        arrays = mesh_lib.put_batch(mesh, {name: batch[name] for name in ("image", "mask")})
        part, counted = jax.device_get(_moments(tokenizer, params, **arrays))
        total, images = total + np.asarray(part, np.float64), images + int(counted)
    return total / (images * tokenizer.bits)


@functools.partial(jax.jit, static_argnums=0)
def _moments(tokenizer, params, image, mask):
    z = tokenizer.apply({"params": params}, data.to_float(image), method=tokenizer.project)
    return energy.second_moment(z * mask[:, None, None])[0], mask.sum()


def evaluate(
    config: ConfigDict, trained: models.Trained, writer: MetricsWriter
) -> dict[str, float]:
    """Keeps and draws A as it is now.

    Returns:
      `basis_orthogonality`, the norm of A A^T - I, and A's extreme singular values.
    """
    basis.keep(config, trained)
    matrix = trained.module.matrix_of(trained.params)
    rows = pictures.rows_picture(matrix, trained.module.grid, labels=True)
    if jax.process_index() == 0:
        save_png(pathlib.Path(config.workdir) / "basis" / "rows.png", rows)
    writer.image(trained.step, "basis", rows)
    values, norm = basis.spectrum(matrix)
    found = (norm, float(values[0]), float(values[-1]))
    return dict(zip(basis.NUMBERS[2:], found, strict=True))
