"""Published weight files to the checkpoints of a workdir: `tokenizer/`, `generator/`, or both.

`sample`, `encode`, `reconstruct`, `export_weights`, `Pipeline.load` and another run's `init_from`
then use them like trained ones. Nothing is written before both files are checked, and a checkpoint
that is there already is not overwritten.
"""

import logging
import pathlib

import jax
from ml_collections import ConfigDict

from bar_jax.pretrained import published
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime import preemption, workdir
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.job import Job
from bar_jax.runtime.writer import update_summary
from bar_jax.training import checkpoint

logger = logging.getLogger(__name__)


def run(config: ConfigDict) -> dict[str, object]:
    """Imports the files that `config.published` names; returns the summary."""
    paths = {part: config.published[part] for part in ("tokenizer", "generator")}
    paths = {part: path for part, path in paths.items() if path}
    if not paths:
        raise InputError("published.generator, published.tokenizer", "no file", "one, or both")
    summary = {f"{part}_imported_from": str(path) for part, path in paths.items()}
    for part, path in list(paths.items()):
        if _imported(config, part, path):
            logger.info("import_weights: %s is there already, nothing to do", path)
            del paths[part]
        else:
            workdir.check_free(config, part)
    tensors = {part: published.read(config, part, path) for part, path in paths.items()}
    mesh = mesh_lib.make_mesh(**config.mesh)
    for part, path in paths.items():
        preemption.check(f"import_weights: the {part} was not imported")
        trained = published.load(config, part, tensors.pop(part), mesh)
        folder = workdir.begin_training(config, part)
        with jax.set_mesh(mesh):
            checkpoint.save_params(folder, trained.params, workdir.to_json(config))
        logger.info("import_weights: %s is in %s", path, folder)
    return update_summary(config.workdir, summary)


def _imported(config: ConfigDict, part: str, path: str) -> bool:
    """Whether a run that was cut off, or finished, has imported this very file."""
    folder = pathlib.Path(config.workdir) / part
    if not workdir.begun(folder):
        return False
    stored = workdir.read_json(folder / "config.json")
    return stored.get("job") == "import_weights" and stored["published"][part] == path


JOB = Job(run)
