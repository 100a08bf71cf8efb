"""Stage 1: train the tokenizer on images.

Writes `tokenizer/` (checkpoints), `reconstructions.png`, and into `summary.json` the validation
PSNR and losses, the bits' usage and the bit budget.
"""

import functools
import pathlib
from collections.abc import Sequence

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from bar_jax import data
from bar_jax.data import classes
from bar_jax.inspection.basis import evaluate_tokenizer
from bar_jax.metrics import tokenizer as tokenizer_metrics
from bar_jax.metrics.reconstruction import bit_entropies
from bar_jax.pretrained import frozen
from bar_jax.runtime import workdir
from bar_jax.runtime.job import Job, batches_of
from bar_jax.runtime.mesh import batch_share, broadcast_from_first, first_alone, make_mesh
from bar_jax.runtime.writer import MetricsWriter, update_summary
from bar_jax.tokenizers import basis_inside, bit_budget, make_tokenizer, sequence_grid, token_width
from bar_jax.training import basis as basis_lib
from bar_jax.training import checkpoint, loop, restore
from bar_jax.training.basis import BasisTraining
from bar_jax.training.step import TrainState, stream_key
from bar_jax.training.tokenizer import (
    STAGE,
    basis_training,
    check_discriminator,
    make_program,
    pretrained_params,
)

INIT_STREAM = f"{STAGE}/params"  # of random numbers, that fresh parameters are drawn from


def run(config: ConfigDict) -> dict[str, object]:
    """Trains to the end, or goes on from the last checkpoint; returns the summary."""
    section, mesh = config.train_tokenizer, make_mesh(**config.mesh)
    source = data.open_images(config)
    first_alone(lambda: classes.keep(config, source.class_names))
    folder = workdir.begin_training(config, "tokenizer")
    tokenizer = make_tokenizer(config, remat=section.remat)

    def program(durations):
        check_discriminator(section, len(source), durations.steps)
        networks, basis = frozen.load(config, mesh), None
        # Else all of it is in a checkpoint.
        if not broadcast_from_first(lambda: workdir.begun(folder)):
            basis = _start(config, mesh, tokenizer, networks, source)
        return make_program(config, networks, durations, len(source), basis=basis)

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
            rows=batch_share(mesh).rows(section.batch_size),
            on_damaged=config.data.on_damaged,
        )

    other = config.init_from if not basis_lib.starts_from_plain(config) else ""
    stage = loop.Stage(
        name=STAGE,
        section=section,
        seed=config.seed,
        examples=len(source),
        make_program=program,
        batches=batches,
        evaluate=functools.partial(_evaluate, config, mesh, tokenizer),
        folder=folder,
        init_from=pathlib.Path(other) / "tokenizer" if other else None,
        config=workdir.to_json(config),
        advice="more data.num_workers decode ahead, and images cropped beforehand take a sixth",
    )
    steps, results = loop.train(stage, mesh)
    workdir.finish_training(folder, steps)
    return _report(config, steps, results)


def _start(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    tokenizer: nn.Module,
    networks: frozen.Networks,
    source: Sequence,
) -> BasisTraining:
    """How a basis is trained, with the parameters that a fresh training with it starts from."""
    plain, moment = {}, None
    if basis_lib.starts_from_plain(config):
        plain = basis_lib.plain_params(config, mesh)
    if basis_lib.is_made_of_latents(config):
        init = lambda _: restore.init_tokenizer(tokenizer, stream_key(config.seed, INIT_STREAM))
        params = restore.fresh_params(init, mesh, config.seed)
        params |= plain or pretrained_params(config, networks)
        moment = basis_lib.latent_moment(config, mesh, tokenizer, params, source)
    basis = basis_training(config, mesh, tokenizer, moment)
    return basis._replace(pretrained=plain | basis.pretrained)


def _evaluate(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    tokenizer: nn.Module,
    state: TrainState,
    writer: MetricsWriter,
) -> loop.Results:
    """The numbers of a state; also draws reconstructions, and the basis if there is one."""
    section, step = config.train_tokenizer, int(state.step)
    params = state.params if state.ema is None else state.ema
    measured = tokenizer_metrics.measure(
        config, mesh, tokenizer, params, section.batch_size, section.evaluate_images
    )
    writer.image(step, "reconstructions", tokenizer_metrics.save_picture(config, measured))
    usages = measured.bit_usages
    writer.histogram(step, "bit_usages", usages)
    writer.histogram(step, "bit_entropies", bit_entropies(usages).tolist())
    found = {f"reconstruction_{name}": value for name, value in measured.numbers.items()}
    if basis_inside(config):
        found |= evaluate_tokenizer(config, restore.Trained(tokenizer, params, step), writer)
    return found


def report_finished(config: ConfigDict) -> dict[str, object]:
    """Tells of a finished tokenizer as of one that was trained here; returns the summary."""
    meta = checkpoint.read_meta(pathlib.Path(config.workdir) / "tokenizer")
    others = {name: value for name, value in meta["results"].items() if name != "seconds"}
    return _report(config, meta["step"], others)


def _report(config, steps, results) -> dict[str, object]:
    (rows, columns), bits = sequence_grid(config), token_width(config)
    summary = {
        "tokenizer_step": steps,
        "bits_per_token": bits,
        "tokens": rows * columns,
        "bit_budget": bit_budget.discrete((rows, columns), 2**bits),
        **results,
    }
    if "seconds" in summary:  # all that was spent in this workdir
        summary[f"seconds_{STAGE}"] = round(summary.pop("seconds"), 1)
    return update_summary(config.workdir, summary)


JOB = Job(run, batches_of("train_tokenizer"))
