"""Stage 1: train the tokenizer on images.

Writes `tokenizer/` (checkpoints), `reconstructions.png`, and into `summary.json` the validation
PSNR and losses, the bits' usage and the bit budget.
"""

import pathlib

import jax
from ml_collections import ConfigDict

from bar_jax import data, models, workdir
from bar_jax.config import token_grid
from bar_jax.jobs import reconstruct
from bar_jax.losses.reconstruction import reconstruction
from bar_jax.mesh import make_mesh
from bar_jax.tokenizers import make_tokenizer
from bar_jax.training import loop
from bar_jax.training.writer import update_summary

STAGE = "train_tokenizer"


def run(config: ConfigDict) -> dict[str, object]:
    """Trains to the end, or goes on from the last checkpoint; returns the summary."""
    section, mesh = config.train_tokenizer, make_mesh(**config.mesh)
    source = data.open_images(config)
    folder = workdir.begin_training(config, "tokenizer")
    tokenizer = make_tokenizer(config, remat=section.remat)

    def loss_fn(params, batch, keys, dropout_key, step):
        del keys, dropout_key, step  # nothing in this loss is random
        images = data.to_float(batch["image"])
        reconstructed = tokenizer.apply({"params": params}, images)
        return reconstruction(images, reconstructed.images, **section.loss)

    def batches(start):
        return data.train_batches(
            source,
            image_size=config.data.image_size,
            crop=config.data.crop,
            mirror=config.data.mirror,
            batch_size=section.batch_size,
            seed=config.seed,
            start_step=start,
            num_workers=config.data.num_workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            on_damaged=config.data.on_damaged,
        )

    def evaluate(state, writer):
        params = state.params if state.ema is None else state.ema
        numbers, originals, decoded = reconstruct.measure(
            config, mesh, tokenizer, params, section.batch_size, section.evaluate_images
        )
        picture = reconstruct.save_picture(config, originals, decoded)
        writer.image(int(state.step), "reconstructions", picture)
        return numbers

    steps, results = loop.train(
        STAGE,
        section,
        seed=config.seed,
        examples=len(source),
        mesh=mesh,
        init_params=lambda key: models.init_tokenizer(tokenizer, key),
        loss_fn=loss_fn,
        batches=batches,
        evaluate=evaluate,
        folder=folder,
        init_from=pathlib.Path(config.init_from) / "tokenizer" if config.init_from else None,
        config=workdir.to_json(config),
    )
    rows, columns = token_grid(config)
    bits = config.model.tokenizer.bits
    return update_summary(
        config.workdir,
        {
            "tokenizer_step": steps,
            "bits_per_token": bits,
            "tokens": rows * columns,
            "bit_budget": rows * columns * bits,  # eq. 3
            **{f"reconstruction_{k}": v for k, v in results.items() if k != "seconds"},
            f"seconds_{STAGE}": round(results["seconds"], 1),
        },
    )
