"""The jobs: one file each, the whole story of that job from top to bottom.

A new job is one file here and one line in JOBS.
"""

import jax
from ml_collections import ConfigDict

from bar_jax.generators import sampling_settings
from bar_jax.jobs import (
    basis,
    basis_tokens,
    benchmark,
    describe,
    encode,
    evaluate,
    export_weights,
    figures,
    import_weights,
    pipeline,
    reconstruct,
    reference,
    sample,
    train_generator,
    train_tokenizer,
)
from bar_jax.runtime import mesh
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.job import Batch, Job, batches_of
from bar_jax.tokenizers import real_valued


def _basis(config: ConfigDict) -> dict[str, object]:
    """The basis in front of a generator of real-valued tokens, or that of bits."""
    return (basis if real_valued(config) else basis_tokens).run(config)


def _basis_batches(config: ConfigDict) -> list[Batch]:
    return [] if real_valued(config) else batches_of("sample", "evaluate")(config)


JOBS: dict[str, Job] = {
    "pipeline": pipeline.JOB,
    "train_tokenizer": train_tokenizer.JOB,
    "encode": encode.JOB,
    "train_generator": train_generator.JOB,
    "sample": sample.JOB,
    "reconstruct": reconstruct.JOB,
    "evaluate": evaluate.JOB,
    "reference": reference.JOB,
    "import_weights": import_weights.JOB,
    "export_weights": export_weights.JOB,
    "basis": Job(_basis, _basis_batches, draws_images=True),
    "figures": figures.JOB,
    "describe": describe.JOB,
    "benchmark": benchmark.JOB,
}


def check_devices(config: ConfigDict) -> None:
    """Checks what depends on the devices present.

    Raises:
      InputError: a mesh that the devices do not fill, a batch that the mesh does not divide, an
        attention that they do not have.
    """
    job = JOBS[config.job]
    if not job.on_devices:
        return
    data, fsdp, _ = mesh.axis_sizes(**config.mesh, devices=jax.device_count())
    ways = data * fsdp
    if job.draws_images:
        sampling_settings(config)
    for field, size, pieces in job.batches(config):
        if size % (ways * pieces):
            into = f"{ways} ways (mesh.data x mesh.fsdp)" + f" x {pieces} pieces" * (pieces > 1)
            raise InputError(field, str(size), f"a multiple of {ways * pieces}, for {into}")
