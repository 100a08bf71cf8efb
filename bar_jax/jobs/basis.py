"""The basis of a trained generator: what it looks like, how good it is, how it has changed.

Writes into `basis/`, as training does at every evaluation: see `inspection/basis.py`.
"""

import jax
from ml_collections import ConfigDict

from bar_jax.data import caches
from bar_jax.inspection.basis import draw, is_watched, keep, measure
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.writer import update_summary
from bar_jax.tokenizers import make_tokenizer
from bar_jax.training import restore
from bar_jax.training.basis import Moments, token_moment


def run(config: ConfigDict) -> dict[str, object]:
    """Measures and draws the basis of the workdir's generator; returns the summary."""
    if not is_watched(config):
        given = f"{config.model.basis.kind!r} of {config.model.tokenizer.kind}"
        expected = "one basis for all images, of real-valued tokens"
        raise InputError("model.basis.kind", given, expected)
    mesh = mesh_lib.make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        trained = restore.load_generator(config, mesh)
        tokenizer = restore.find_tokenizer(config, mesh)
        codec = make_tokenizer(config)
        splits = (caches.open_split(config, split) for split in caches.SPLITS)
        moments = Moments(*(token_moment(config, trained.module, codec, s) for s in splits))
        keep(config, trained)
        found, curves = measure(config, trained, moments)
        draw(config, curves, trained, tokenizer)
    return update_summary(config.workdir, {"generator_step": trained.step, **found})
