"""The jobs: one file each, the whole story of that job from top to bottom."""

import jax
from ml_collections import ConfigDict

from bar_jax import mesh
from bar_jax.errors import InputError
from bar_jax.jobs import (
    describe,
    encode,
    evaluate,
    pipeline,
    reconstruct,
    sample,
    train_generator,
    train_tokenizer,
)

JOBS = {
    "pipeline": pipeline.run,
    "train_tokenizer": train_tokenizer.run,
    "encode": encode.run,
    "train_generator": train_generator.run,
    "sample": sample.run,
    "reconstruct": reconstruct.run,
    "evaluate": evaluate.run,
    "describe": describe.run,
}


def check_devices(config: ConfigDict) -> None:
    """Checks what depends on the devices present.

    Raises:
      InputError: a mesh that the devices do not fill, a batch that the mesh does not divide.
    """
    data, fsdp, _ = mesh.axis_sizes(**config.mesh, devices=jax.device_count())
    ways = data * fsdp
    sizes = {
        "train_tokenizer.batch_size": config.train_tokenizer.batch_size,
        "train_generator.batch_size": config.train_generator.batch_size,
        "encode.batch_size": config.encode.batch_size,
        "sample.batch_size": config.sample.batch_size,
    }
    for name, size in sizes.items():
        section = config[name.partition(".")[0]]
        pieces = section.get("accumulate", 1)
        if size % (ways * pieces):
            into = f"{ways} ways (mesh.data x mesh.fsdp)" + f" x {pieces} pieces" * (pieces > 1)
            raise InputError(name, str(size), f"a multiple of {ways * pieces}, for {into}")
