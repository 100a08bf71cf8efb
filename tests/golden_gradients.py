"""Gradients under published names, for the golden cases."""

import math

import jax
import numpy as np


def published_gradients(grads, importer, tensors):
    """Our gradients as `grad.NAME` under the published names, with their global norm.

    An importer only moves numbers about: numbering all of them shows where each one went.
    """
    ends = np.cumsum([tensor.size for tensor in tensors.values()])
    numbers = {
        name: np.arange(end - tensor.size, end).reshape(tensor.shape)
        for end, (name, tensor) in zip(ends, tensors.items(), strict=True)
    }
    flat = np.full(ends[-1], np.nan)
    jax.tree.map(lambda n, g: np.put(flat, n, np.asarray(g)), importer(numbers), grads)
    named = {f"grad.{name}": flat[n] for name, n in numbers.items() if not np.isnan(flat[n]).any()}
    return named | {"grad_global_norm": math.sqrt(np.nansum(flat**2))}
