"""Pure functions with and without jit: `chex.variants` over a table of them."""

from collections.abc import Sequence

import chex
import numpy as np
from absl.testing import parameterized


def against_numpy(cases: Sequence[tuple], rtol: float = 1e-4, atol: float = 1e-5) -> type:
    """A class of tests: each function, with jit and without, is what NumPy says in float64.

    Args:
      cases: (name, function, its arguments, a function of the same arguments that tells the truth).
    """

    class Variants(chex.TestCase):
        @chex.variants(with_jit=True, without_jit=True)
        @parameterized.named_parameters(*cases)
        def test_(self, function, arguments, expected):
            found = self.variant(function)(*map(_single, arguments))
            chex.assert_tree_all_finite(found)
            chex.assert_trees_all_close(found, _single(expected(*arguments)), rtol=rtol, atol=atol)

    return Variants


def _single(tree):
    """In single precision; whole numbers as they are."""
    if isinstance(tree, tuple | dict):
        keys = tree if isinstance(tree, dict) else range(len(tree))
        found = {key: _single(tree[key]) for key in keys}
        return found if isinstance(tree, dict) else tuple(found.values())
    array = np.asarray(tree)
    return np.float32(array) if array.dtype == np.float64 else array
