"""The stages in order: tokenizer, token cache, generator, samples, evaluation.

A stage that is finished is skipped, one that was cut off goes on. A finished tokenizer that was
trained otherwise, imported, or copied from another workdir is used as it is. Tokenizers of
real-valued tokens are not trained: pixels need no tokenizer, and kl_vae one that job=import_weights
put there.
"""

import logging

from ml_collections import ConfigDict

from bar_jax.jobs import encode, evaluate, sample, train_generator, train_tokenizer
from bar_jax.runtime import mesh, preemption, workdir
from bar_jax.runtime.job import Batch, Job, batches_of
from bar_jax.runtime.writer import update_summary
from bar_jax.tokenizers import is_trained, kind_of

logger = logging.getLogger(__name__)


def run(config: ConfigDict) -> dict[str, object]:
    """Runs what is not finished yet; returns the summary."""
    stages = [train_tokenizer, encode, train_generator, sample]
    kind = kind_of(config)
    if kind.untrained:
        stages.remove(train_tokenizer)
        if kind.has_parameters:
            workdir.trained(config, "tokenizer")  # missed now, not when there is all to be drawn
    evaluate.check(config)  # the same
    if others := mesh.broadcast_from_first(lambda: workdir.trained_otherwise(config)):
        words = ", ".join(f"{name}={value}" for name, value in others.items())
        logger.warning("pipeline: the finished tokenizer is used as it is; it has %s", words)
        stages.remove(train_tokenizer)
        train_tokenizer.report_finished(config)
    for job in stages:
        job.run(config)
        preemption.check(f"pipeline: {job.__name__.rpartition('.')[2]} is finished")
    summary = evaluate.run(config)
    seconds = sum(value for name, value in summary.items() if name.startswith("seconds_"))
    return update_summary(config.workdir, {"total_seconds": round(seconds, 1)})


def _batches(config: ConfigDict) -> list[Batch]:
    stages = ("train_tokenizer",) if is_trained(config) else ()
    return batches_of(*stages, "encode", "train_generator", "sample", "evaluate")(config)


JOB = Job(run, _batches, draws_images=True)
