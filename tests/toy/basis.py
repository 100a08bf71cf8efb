"""A toy basis: the last token first."""

import numpy as np

from bar_jax.bases.kind import BasisKind

KIND = BasisKind(order=lambda shape: np.arange(shape.tokens, dtype=np.int32)[::-1].copy())
