"""The jobs: one file each, the whole story of that job from top to bottom."""

import jax
from ml_collections import ConfigDict

from bar_jax.config import real_valued
from bar_jax.config.validation import SAMPLING_JOBS
from bar_jax.generators.settings import sampling_settings
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


def _basis(config: ConfigDict) -> dict[str, object]:
    """The basis in front of a generator of real-valued tokens, or that of bits."""
    return (basis if real_valued(config) else basis_tokens).run(config)


JOBS = {
    "pipeline": pipeline.run,
    "train_tokenizer": train_tokenizer.run,
    "encode": encode.run,
    "train_generator": train_generator.run,
    "sample": sample.run,
    "reconstruct": reconstruct.run,
    "evaluate": evaluate.run,
    "reference": reference.run,
    "import_weights": import_weights.run,
    "export_weights": export_weights.run,
    "basis": _basis,
    "figures": figures.run,
    "describe": describe.run,
    "benchmark": benchmark.run,
}

# What a job cuts over the mesh.
BATCHES = {
    "train_tokenizer": ("train_tokenizer",),
    "encode": ("encode",),
    "train_generator": ("train_generator", "sample", "evaluate"),
    "sample": ("sample",),
    "basis": ("sample", "evaluate"),  # of bits
    "reconstruct": ("encode",),
    "evaluate": ("evaluate",),
    "reference": ("evaluate",),
    "pipeline": ("train_tokenizer", "encode", "train_generator", "sample", "evaluate"),
}


def check_devices(config: ConfigDict) -> None:
    """Checks what depends on the devices present.

    Raises:
      InputError: a mesh that the devices do not fill, a batch that the mesh does not divide, an
        attention that they do not have.
    """
    if config.job == "describe":  # of devices that need not be present, see `describe.devices`
        return
    data, fsdp, _ = mesh.axis_sizes(**config.mesh, devices=jax.device_count())
    ways = data * fsdp
    if config.job in SAMPLING_JOBS:
        sampling_settings(config)
    if config.job == "benchmark":
        names = [
            benchmark.SECTIONS[part]
            for part in config.benchmark.parts
            if part not in ("head", "input")  # which no mesh cuts
        ]
    else:
        names = BATCHES.get(config.job, ())
        if real_valued(config):  # whose tokenizers are not trained
            names = [name for name in names if name != "train_tokenizer" and config.job != "basis"]
    swept = config.benchmark.batches if config.job == "benchmark" else ()
    sizes = [(name, size) for name in names for size in swept or (config[name].batch_size,)]
    for name, size in sizes:
        pieces = config[name].get("accumulate", 1)
        if size % (ways * pieces):
            into = f"{ways} ways (mesh.data x mesh.fsdp)" + f" x {pieces} pieces" * (pieces > 1)
            expected = f"a multiple of {ways * pieces}, for {into}"
            field = "benchmark.batches" if swept else f"{name}.batch_size"
            raise InputError(field, str(size), expected)
