"""Images for given classes, equally many of every class, or of classes drawn at random.

Writes `samples.npz` (`arr_0`: uint8 [B, H, W, 3], as the ADM evaluator reads it; `arr_1`: labels;
`settings`: what they were drawn with, JSON) and `samples.png`, a row per class. Image i depends on
the seed and i alone: not on the batch it was drawn in, on processes or on interruptions. A job that
was cut off goes on with the next batch: what was drawn is kept in `samples.partial-...`.
"""

import contextlib
import logging
import pathlib
import time

import jax
from ml_collections import ConfigDict

from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime import preemption
from bar_jax.runtime.job import Job, batches_of
from bar_jax.runtime.writer import update_summary
from bar_jax.sampling import provenance
from bar_jax.sampling.draw import Models, draw, sample_labels
from bar_jax.sampling.kept import given_halves
from bar_jax.sampling.unfinished import Unfinished
from bar_jax.training import restore
from bar_jax.visualize.grid import class_grid, save_png

logger = logging.getLogger(__name__)


def run(config: ConfigDict) -> dict[str, object]:
    """Draws the configured samples, unless they are there already; returns the summary."""
    mesh = mesh_lib.make_mesh(**config.mesh)
    path = pathlib.Path(config.workdir) / "samples.npz"
    with jax.set_mesh(mesh):
        generator, tokenizer = models = Models(
            restore.load_generator(config, mesh), restore.load_tokenizer(config, mesh)
        )
        weights = provenance.digests(config, generator=generator.step, tokenizer=tokenizer.step)
        settings = provenance.settings(config, generator.step, tokenizer.step) | weights
        # Sets that are older than the digests lack them.
        is_finished = lambda: weights | (provenance.stored(path) or {}) == settings
        if mesh_lib.broadcast_from_first(is_finished):
            logger.info("sample: %s is finished, nothing to do", path)
            return update_summary(config.workdir, settings)
        began = time.monotonic()
        labels = sample_labels(config)
        given = given_halves(config, labels)
        kept = Unfinished(config, settings, len(labels))
        batches = draw(config, mesh, models, labels, given, start=kept.count)
        with contextlib.closing(batches):
            for batch in batches:
                kept.append(mesh_lib.gather_to_host(batch["image"]))
                if kept.count < len(labels):
                    kept_so_far = f"sample: {kept.count} of {len(labels)} images are kept"
                    preemption.check(kept_so_far)
    seconds = {"seconds_sample": round(time.monotonic() - began, 1)}
    summary = update_summary(config.workdir, settings | seconds)
    with mesh_lib.all_or_none():
        if jax.process_index() == 0:
            picture = class_grid(kept.images, labels)
            save_png(path.with_suffix(".png"), picture)
            # Last: it says that all is there.
            source = str(pathlib.Path(config.workdir) / "generator" / str(generator.step))
            kept.finish(path, labels, settings | {provenance.CHECKPOINT: source})
    return summary


JOB = Job(run, batches_of("sample"), draws_images=True)
