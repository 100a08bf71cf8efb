"""The metrics against torch-fidelity's: on the same features, and on the same images.

To run them: pip install --no-deps torch-fidelity (with its dependencies it would fetch another
PyTorch).
"""

import functools
import sys
import types

import numpy as np
import pytest

from bar_jax.config import default_config
from bar_jax.config.presets import tiny
from bar_jax.jobs import evaluate
from bar_jax.metrics import kid as kid_module
from bar_jax.metrics.frechet import frechet_distance
from bar_jax.metrics.inception_score import inception_score
from bar_jax.metrics.kid import kid
from bar_jax.metrics.moments import add, gaussian, zero_moments
from bar_jax.metrics.precision_recall import precision_recall
from bar_jax.pretrained import manifest

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
        from torch_fidelity import calculate_metrics, metric_fid, metric_isc, metric_kid, metric_prc
    return types.SimpleNamespace(
        fid=metric_fid, isc=metric_isc, kid=metric_kid, prc=metric_prc,
        calculate_metrics=calculate_metrics,
    )  # fmt: skip


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


# --- from images to numbers ----------------------------------------------------------------------


class Tensors(torch.utils.data.Dataset):
    """Images as torch-fidelity takes them: uint8 [3, H, W]."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return torch.from_numpy(self.images[index].transpose(2, 0, 1).copy())


def random_inception(path):
    """A file of random weights under the published names, such that features vary with images."""
    model = next(m for m in manifest.published() if m.model == "inception_2015")
    shapes = {**model.tensors, "fc.bias": model.optional["fc.bias"]}
    rng, tensors = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        kind = name.split(".")[-2] + "." + name.split(".")[-1]
        if kind in ("bn.weight", "bn.running_var"):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            fan_in = np.prod(shape[1:]) if len(shape) > 1 else 100
            values = rng.normal(size=shape) * (2 / fan_in) ** 0.5
        tensors[name] = torch.from_numpy(values.astype(np.float32))
    torch.save(tensors, path)


@pytest.mark.slow
def test_job_evaluate_and_torch_fidelity_agree_on_the_same_images(fidelity, tmp_path):
    """FID, KID, Inception Score, precision and recall: from the same images and weights file."""
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 256, (24, 3, 3, 3), np.uint8).repeat(16, 1).repeat(16, 2)
    real = rng.integers(0, 200, (20, 6, 6, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    weights = str(tmp_path / "pt_inception.pth")
    random_inception(weights)
    expected = fidelity.calculate_metrics(
        input1=Tensors(samples), input2=Tensors(real), batch_size=8, cuda=False, verbose=False,
        isc=True, fid=True, kid=True, prc=True, cache=False, isc_splits=1, kid_subset_size=12,
        kid_subsets=100, samples_shuffle=False, save_cpu_ram=True, feature_layer_prc="2048",
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=weights,
    )  # fmt: skip

    np.savez(tmp_path / "samples.npz", arr_0=samples)
    np.savez(tmp_path / "real.npz", arr_0=real)
    config = tiny(default_config())
    config.workdir, config.data.image_size = str(tmp_path), 48
    config.evaluate.metrics = ("fid", "inception_score", "precision_recall", "kid")
    config.evaluate.update(dict(reference=str(tmp_path / "real.npz"), batch_size=8))
    config.evaluate.weights.inception = weights
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kid_module, "kid", functools.partial(kid, block_size=12))
        summary = evaluate.run(config)
    theirs = {
        "fid": fidelity.fid.KEY_METRIC_FID,
        "inception_score": fidelity.isc.KEY_METRIC_ISC_MEAN,
        "kid": fidelity.kid.KEY_METRIC_KID_MEAN,
        "kid_std": fidelity.kid.KEY_METRIC_KID_STD,
        "precision": fidelity.prc.KEY_METRIC_PRECISION,
        "recall": fidelity.prc.KEY_METRIC_RECALL,
    }
    for ours, name in theirs.items():
        print(ours, summary[f"sample_{ours}"], expected[name])
    for ours, name in theirs.items():
        assert summary[f"sample_{ours}"] == pytest.approx(expected[name], rel=1e-3), ours
