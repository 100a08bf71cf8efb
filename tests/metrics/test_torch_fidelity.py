"""The metrics against torch-fidelity's on the same features.

To run them: pip install --no-deps torch-fidelity (with its dependencies it would fetch another
PyTorch).
"""

import sys
import types

import numpy as np
import pytest

from bar_jax.metrics.frechet import frechet_distance
from bar_jax.metrics.inception_score import inception_score
from bar_jax.metrics.kid import kid
from bar_jax.metrics.moments import add, gaussian, zero_moments
from bar_jax.metrics.precision_recall import precision_recall

torch = pytest.importorskip("torch")
SIZE = 48


@pytest.fixture(scope="module")
def fidelity():
    """torch-fidelity, whose data sets, of torchvision, are not needed here."""
    with pytest.MonkeyPatch.context() as patch:
        if "torchvision" not in sys.modules:
            stand_ins = {
                name: types.ModuleType(name)
                for name in (
                    "torchvision",
                    "torchvision.datasets",
                    "torchvision.transforms",
                    "torchvision.transforms.functional",
                )
            }
            for name, module in stand_ins.items():
                patch.setitem(sys.modules, name, module)
                parent, _, child = name.rpartition(".")
                if parent:
                    setattr(stand_ins[parent], child, module)
            for name in ("CIFAR10", "CIFAR100", "STL10"):
                setattr(stand_ins["torchvision.datasets"], name, type(name, (), {}))
        pytest.importorskip("torch_fidelity")
        from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc
    return types.SimpleNamespace(fid=metric_fid, isc=metric_isc, kid=metric_kid, prc=metric_prc)


@pytest.fixture(scope="module")
def sets():
    """Samples [300, SIZE] and a reference [200, SIZE], positive as pooled ReLUs are."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(SIZE, SIZE)) / np.sqrt(SIZE)
    samples, reference = (
        np.maximum(rng.normal(size=(count, SIZE)) @ mix + shift, 0).astype(np.float32)
        for count, shift in ((300, 0.5), (200, 0.6))
    )
    return samples, reference


@pytest.mark.parametrize("count", [200, 30])
def test_frechet_distance(fidelity, sets, count):
    """With fewer images than features too."""
    samples, reference = (features[:count].astype(np.float64) for features in sets)
    statistics = [
        fidelity.fid.fid_features_to_statistics(torch.from_numpy(features))
        for features in (samples, reference)
    ]
    expected = fidelity.fid.fid_statistics_to_metric(*statistics, verbose=False)
    found = [gaussian(add(zero_moments(SIZE), features)) for features in (samples, reference)]
    # The root of an eigenvalue that is rounding, 1e-16, is 1e-8.
    assert frechet_distance(*found) == pytest.approx(expected[fidelity.fid.KEY_METRIC_FID], 1e-6)


def test_inception_score(fidelity, sets):
    logits = 3 * sets[0]
    expected = fidelity.isc.isc_features_to_metric(torch.from_numpy(logits), 3, shuffle=False)
    names = (fidelity.isc.KEY_METRIC_ISC_MEAN, fidelity.isc.KEY_METRIC_ISC_STD)
    found = inception_score(logits, group=100)
    assert found == pytest.approx(tuple(expected[name] for name in names), rel=1e-6)


def test_kid(fidelity, sets):
    """Of the same subsets."""
    samples, reference = (features.astype(np.float64) for features in sets)
    expected = fidelity.kid.kid_features_to_metric(
        torch.from_numpy(samples),
        torch.from_numpy(reference),
        kid_subsets=5,
        kid_subset_size=64,
        rng_seed=7,
        verbose=False,
    )
    names = (fidelity.kid.KEY_METRIC_KID_MEAN, fidelity.kid.KEY_METRIC_KID_STD)
    found = kid(samples, reference, blocks=5, block_size=64, seed=7)
    assert found == pytest.approx(tuple(expected[name] for name in names), rel=1e-9)


def test_precision_and_recall(fidelity, sets):
    samples, reference = sets
    expected = fidelity.prc.prc_features_to_metric(
        *(torch.from_numpy(features.astype(np.float64)) for features in sets), verbose=False
    )
    names = (fidelity.prc.KEY_METRIC_PRECISION, fidelity.prc.KEY_METRIC_RECALL)
    found = precision_recall(reference, samples)
    assert found == pytest.approx(tuple(expected[name] for name in names), rel=1e-6)
    assert 0.1 < min(found) and max(found) < 0.99  # else the test would tell little
