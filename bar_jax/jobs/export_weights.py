"""The generator of a workdir to a `.safetensors` file that the published code loads.

Its parameters (the EMA where one was kept) go under the published names, with all buffers; what is
imported and exported again is the same file. Tokenizers are not exported.
"""

import logging
import pathlib

import jax
from ml_collections import ConfigDict

from bar_jax import mesh as mesh_lib
from bar_jax import models, published
from bar_jax.errors import InputError
from bar_jax.pretrained.files import write_safetensors
from bar_jax.training.writer import update_summary

logger = logging.getLogger(__name__)


def run(config: ConfigDict) -> dict[str, object]:
    """Writes `config.published.export`; returns the summary."""
    published.check_kind(config, "generator")
    default = pathlib.Path(config.workdir) / "generator.safetensors"
    path = pathlib.Path(config.published.export or default).expanduser()
    if path.suffix != ".safetensors":
        raise InputError("published.export", str(path), "a path that ends in .safetensors")
    if path.exists():
        raise InputError(path, "a file", "none: it is not overwritten; another published.export")
    mesh = mesh_lib.make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        generator = models.load_generator(config, mesh)
        params = jax.tree.map(mesh_lib.whole, generator.params)
    if jax.process_index() == 0:
        write_safetensors(path, published.generator_tensors(config, params))
    logger.info("export_weights: %s, step %d", path, generator.step)
    return update_summary(
        config.workdir, {"exported_to": str(path), "exported_step": generator.step}
    )
