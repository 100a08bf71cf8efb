"""A toy job: where the workdir's generator writes its first token."""

import jax

from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime.job import Job
from bar_jax.runtime.writer import update_summary
from bar_jax.training import restore


def run(config) -> dict[str, object]:
    """Looks; returns the summary."""
    mesh = mesh_lib.make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        generator = restore.load_generator(config, mesh)
    return update_summary(config.workdir, {"first_place": int(generator.module.order()[0])})


JOB = Job(run)
