"""Stage 2: train the generator on cached tokens.

Writes `generator/` (checkpoints), `samples_during_training.png`, and into `summary.json` the
validation loss: of bits in bits per bit, of real-valued tokens as the generator's own. Where the
basis is a matrix it is also kept and drawn at every evaluation, see
`inspection/basis.py`; FID or another of `train_generator.evaluate_metrics` is measured on samples
then (basis paper, Figure 7). With `data.source=tokens` the cache is packed first if it is not
there, and without a tokenizer in the workdir no pictures are drawn.
"""

import dataclasses
import functools
import logging
import pathlib

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from bar_jax import data
from bar_jax.data import caches
from bar_jax.data.packing import packed_fingerprint
from bar_jax.generators import make_generator
from bar_jax.inspection import basis as basis_lib
from bar_jax.metrics import measuring as measuring_lib
from bar_jax.metrics.measuring import Measuring
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime import workdir
from bar_jax.runtime.job import Job, batches_of
from bar_jax.runtime.writer import MetricsWriter, update_summary
from bar_jax.sampling.draw import Models, sample_images
from bar_jax.sampling.evaluation import measure_generator
from bar_jax.tokenizers import make_tokenizer, sequence_grid, token_width
from bar_jax.training import generator as generator_lib
from bar_jax.training import loop, restore
from bar_jax.training.basis import Moments, token_moment
from bar_jax.training.basis import training as basis_training
from bar_jax.training.generator import make_loss_fn, make_program
from bar_jax.training.step import TrainState, stream_key
from bar_jax.visualize.grid import GRID_ROWS, class_grid, save_png

logger = logging.getLogger(__name__)
STAGE = "train_generator"
# What an evaluation finds -> its name in summary.json.
FINAL = {
    "bits_per_bit": "generator_loss_bits",
    "bit_accuracy": "generator_bit_accuracy",
    "host_loss": "generator_loss",
    "residual_loss": "generator_residual_loss",
    **{name: name for name in basis_lib.NUMBERS},
}


def run(config: ConfigDict) -> dict[str, object]:
    """Trains to the end, or goes on from the last checkpoint; returns the summary."""
    section, mesh = config.train_generator, mesh_lib.make_mesh(**config.mesh)
    tokenizer = restore.find_tokenizer(config, mesh)
    cache, validation = _splits(config, tokenizer)
    folder = workdir.begin_training(config, "generator")
    generator, codec = make_generator(config, remat=section.remat), make_tokenizer(config)
    evaluation = _Evaluation(config, mesh, tokenizer, generator, codec, cache, validation)
    anneal = generator_lib.anneal_steps(config, len(cache))

    def program(durations):
        if generator_lib.is_random(generator):
            generator_lib.warn_of_order(durations.steps, *anneal)
        evaluation.note()
        batch_key = stream_key(config.seed, f"{STAGE}/batch")
        loss_fn = make_loss_fn(generator, codec, *anneal, batch_key)
        moment = evaluation.moments.train if basis_lib.is_watched(config) else None
        basis = basis_training(config, mesh, generator, moment)
        return make_program(generator, loss_fn, section, durations, basis)

    def batches(start):
        return data.token_batches(
            cache,
            batch_size=section.batch_size,
            seed=config.seed,
            mirror=config.data.mirror,
            start_step=start,
            rows=mesh_lib.batch_share(mesh).rows(section.batch_size),
        )

    stage = loop.Stage(
        name=STAGE,
        section=section,
        seed=config.seed,
        examples=len(cache),
        make_program=program,
        batches=batches,
        evaluate=evaluation.find,
        folder=folder,
        init_from=_init_from(config),
        config=workdir.to_json(config),
        advice="the token cache is read from its files, which may lie on a slow disk",
    )
    return _report(config, *loop.train(stage, mesh))


def _splits(config: ConfigDict, tokenizer: restore.Trained | None) -> tuple[data.TokenCache, ...]:
    """Cached tokens of both splits: of the workdir's tokenizer, or packed from published ones."""
    if config.data.source == "tokens":
        fingerprints = [packed_fingerprint(config)]
    else:
        fingerprints = restore.fingerprints(config, tokenizer.params)
    return tuple(caches.open_split(config, split, fingerprints) for split in caches.SPLITS)


def _init_from(config) -> pathlib.Path | None:
    """The generator to start from; in a pipeline `init_from` may have a tokenizer alone."""
    if not config.init_from:
        return None
    folder = pathlib.Path(config.init_from) / "generator"
    if config.job == "pipeline" and not workdir.begun(folder):
        logger.info("%s: starts from scratch, %s has no generator", STAGE, config.init_from)
        return None
    return folder


def _report(config: ConfigDict, steps: int, results: loop.Results) -> dict[str, object]:
    """Writes what training came to; returns the summary."""
    found = {final: results[name] for name, final in FINAL.items() if name in results}
    if "bits_per_bit" in results:
        # Of hidden bits, at the shares of them that training draws: no bound of the likelihood.
        rows, columns = sequence_grid(config)
        bits = rows * columns * token_width(config)
        found["generator_bits_per_image"] = results["bits_per_bit"] * bits
    seconds = {f"seconds_{STAGE}": round(results["seconds"], 1)}
    return update_summary(config.workdir, {"generator_step": steps, **found, **seconds})


@dataclasses.dataclass(frozen=True)
class _Evaluation:
    """What is found of a generator at every evaluation.

    A run that is finished needs none of what it is measured by: that is made when it is asked for.
    """

    config: ConfigDict
    mesh: jax.sharding.Mesh
    tokenizer: restore.Trained | None
    generator: nn.Module  # as training uses it
    codec: nn.Module  # the tokenizer's module, the same
    cache: data.TokenCache
    validation: data.TokenCache

    @functools.cached_property
    def moments(self) -> Moments:
        of = functools.partial(token_moment, self.config, self.generator, self.codec)
        return Moments(of(self.cache), of(self.validation))

    @functools.cached_property
    def measuring(self) -> Measuring | None:
        """What `evaluate_metrics` are measured by; None if there are none."""
        metrics = measuring_lib.training_metrics(self.config) if self.tokenizer is not None else ()
        samples = self.config.train_generator.evaluate_samples
        return measuring_lib.prepare(self.config, self.mesh, metrics, samples) if metrics else None

    def note(self) -> None:
        """Reports a wrong reference, and too few samples, before training and not hours later."""
        if self.measuring:
            notes = self.measuring.notes.items()
            own = lambda name: name.startswith(f"{STAGE}_") and name.endswith("_note")
            notes = {f"{STAGE}_{name}_note": note for name, note in notes}
            update_summary(self.config.workdir, notes, own)

    def find(self, state: TrainState, writer: MetricsWriter) -> loop.Results:
        """The numbers of a state; also draws samples, and the basis if it is a matrix."""
        config, mesh, tokenizer = self.config, self.mesh, self.tokenizer
        section, params = config.train_generator, state.params if state.ema is None else state.ema
        trained = restore.Trained(restore.make_sampler(config), params, int(state.step))
        if tokenizer is not None:
            picture = _sample_grid(config, mesh, Models(trained, tokenizer))
            if jax.process_index() == 0:
                save_png(pathlib.Path(config.workdir) / "samples_during_training.png", picture)
            writer.image(trained.step, "samples", picture)
        found = generator_lib.validation_loss(
            self.generator,
            self.codec,
            params,
            generator_lib.validation_batches(
                self.validation, mesh, section.batch_size, section.evaluate_images
            ),
            stream_key(config.seed, "validation"),
        )
        if self.measuring and self.measuring.metrics:
            both = Models(trained, tokenizer)
            found |= measure_generator(config, mesh, self.measuring, both)
        if basis_lib.is_watched(config):
            args = config, self.moments, trained, tokenizer, writer
            found |= basis_lib.evaluate_generator(*args)
        return found


def _sample_grid(config, mesh, models) -> np.ndarray:
    """One batch of samples, a row per class."""
    classes = min(config.data.num_classes, GRID_ROWS)
    labels = np.arange(config.sample.batch_size, dtype=np.int32) % classes
    images = sample_images(config, mesh, models, labels)
    return class_grid(images, labels)


JOB = Job(run, batches_of("train_generator", "sample", "evaluate"), draws_images=True)
