"""The trained parts of a workdir to `.safetensors` files that the published code loads.

`generator.safetensors` and `tokenizer.safetensors`, of those parts that are there. Parameters (the
EMA where one was kept) go under the published names; what is imported and exported again has the
same numbers. A generator's file is whole, with all buffers. A tokenizer's lacks what is no part of
it here: the frozen copy of its encoder and the unused pooling head.
"""

import logging
import pathlib

import jax
from ml_collections import ConfigDict

from bar_jax.pretrained import published
from bar_jax.pretrained.files import READERS, write_safetensors
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime import workdir
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.job import Job
from bar_jax.runtime.writer import update_summary
from bar_jax.training import restore

logger = logging.getLogger(__name__)
LOADERS = {"tokenizer": restore.load_tokenizer, "generator": restore.load_generator}


def run(config: ConfigDict) -> dict[str, object]:
    """Writes the files into `config.published.export`; returns the summary."""
    parts = [part for part in LOADERS if workdir.begun(pathlib.Path(config.workdir) / part)]
    if not parts:
        expected = "tokenizer/ or generator/, trained or from job=import_weights"
        raise InputError(config.workdir, "no trained model", expected)
    folder = pathlib.Path(config.published.export or config.workdir)
    if folder.suffix in READERS:
        raise InputError("published.export", f"the file {folder}", "a folder for one or two files")
    paths = {part: folder / f"{part}.safetensors" for part in parts}
    for part, path in list(paths.items()):
        try:
            published.check_kind(config, part)
        except InputError as error:
            if len(paths) == 1:
                raise
            logger.info("export_weights: left out the %s: %s", part, error)
            del paths[part]
            continue
        if path.exists():
            expected = "none: it is not overwritten; another published.export"
            raise InputError(path, "a file", expected)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = f"{folder} ({error.strerror})"
        raise InputError("published.export", found, "a folder that can be written to") from error
    mesh, summary = mesh_lib.make_mesh(**config.mesh), {}
    for part, path in paths.items():
        with jax.set_mesh(mesh):
            trained = LOADERS[part](config, mesh)
            params = jax.tree.map(mesh_lib.gather_to_host, trained.params)
        if jax.process_index() == 0:
            write_safetensors(path, published.state_dict(config, part, params))
        logger.info("export_weights: %s, step %d", path, trained.step)
        summary |= {f"{part}_exported_to": str(path), f"{part}_exported_step": trained.step}
    return update_summary(config.workdir, summary)


JOB = Job(run)
