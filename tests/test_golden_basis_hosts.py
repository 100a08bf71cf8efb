"""Parity with the published KL-16, xAR and MAR, on recorded weights, inputs and random draws.

`<BAR_JAX_GOLDEN>/basis_hosts/cases.json` lists the cases and describes every array; a case of a
known kind may have any sizes. A kind is a function (config, given, weights) -> {name: array}: it
takes a case's config (with the names of all `arrays`), its arrays of the roles `input` and
`randomness`, and its weights under their published names, and returns arrays under the names of
the others.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import golden_kl_vae, golden_mar, golden_xar

pytestmark = pytest.mark.slow
FOLDER = Path(os.environ["BAR_JAX_GOLDEN"]) / "basis_hosts"
CASES = json.loads((FOLDER / "cases.json").read_text())["cases"] if FOLDER.is_dir() else {}
FUNCTIONS = (golden_kl_vae.kl16_vae, *golden_xar.KINDS, *golden_mar.KINDS)
KINDS = {function.__name__: function for function in FUNCTIONS}
GIVEN = ("input", "randomness")  # roles


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    case = CASES[name]
    assert case["kind"] in KINDS, f"{name}: no test for cases of kind {case['kind']!r}"
    arrays = dict(np.load(FOLDER / case["data"]))
    roles = {array: case["arrays"][array]["role"] for array in arrays}
    given = {array: arrays[array] for array, role in roles.items() if role in GIVEN}

    config = case["config"] | {"arrays": tuple(arrays)}
    got = KINDS[case["kind"]](config, given, _weights(case))

    # Of intermediate arrays and tables, whatever the kind's function returns is compared as well.
    needed = case["tolerances"].keys() | {n for n, role in roles.items() if role == "output"}
    assert needed and not needed - got.keys() and not got.keys() - (arrays.keys() - given.keys())
    wrong = {n: _difference(got[n], arrays[n], case["tolerances"].get(n)) for n in got}
    assert not any(wrong.values()), {n: told for n, told in wrong.items() if told}


def _weights(case):
    """The tensors whose names start with the case's prefix, without it."""
    prefix, file = case["weights_prefix"], case["weights"]
    tensors = load_file(FOLDER / file) if file else {}
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


def _difference(got, want, tolerance):
    """None where `got` is as good as `want`, else what is wrong; no tolerance: exactly."""
    got = np.asarray(got)
    if got.shape != want.shape:
        return f"shape {got.shape}, expected {want.shape}"
    got, want = got.astype(np.float64), want.astype(np.float64)
    error = np.abs(got - want)
    if tolerance is None:
        return f"{np.sum(error != 0)} of {error.size} differ" if np.any(error != 0) else None
    allowed = tolerance["atol"] + tolerance["rtol"] * np.abs(want)
    if np.all(error <= allowed):
        return None
    worst = np.argmax(error - allowed)
    return f"error {error.flat[worst]:.2e}, where {allowed.flat[worst]:.2e} is allowed"
