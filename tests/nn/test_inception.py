"""Tests of bar_jax/nn/inception.py: the whole network, read from a file, against two others.

One is written here with PyTorch's functions. The other is torch-fidelity's, which is not among the
packages for tests, since it asks for PyTorch and torchvision:
`pip install --no-deps torch-fidelity==0.4.0` (torchvision is not needed here).
"""

import functools
import importlib.util
import sys
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from bar_jax.nn.inception import Inception
from bar_jax.pretrained import manifest
from bar_jax.pretrained.networks import read_network

OUTPUTS = ("pool", "spatial", "logits")


@pytest.fixture(scope="module")
def tensors():
    """Random tensors under the published names, such that no layer's output is tiny or huge."""
    rng = np.random.default_rng(0)
    draw = {
        "conv.weight": lambda shape: rng.normal(size=shape) * (2 / np.prod(shape[1:])) ** 0.5,
        "fc.weight": lambda shape: rng.normal(size=shape) * shape[1] ** -0.5,
        "bn.weight": lambda shape: rng.uniform(0.5, 1.5, shape),
        "bn.running_var": lambda shape: rng.uniform(0.5, 1.5, shape),
        "bn.bias": lambda shape: rng.normal(size=shape) / 10,
        "bn.running_mean": lambda shape: rng.normal(size=shape) / 10,
        "fc.bias": lambda shape: rng.normal(size=shape),
    }
    model = next(m for m in manifest.published() if m.model == "inception_2015")
    shapes = {**model.tensors, "fc.bias": model.optional["fc.bias"]}
    return {
        name: draw[".".join(name.split(".")[-2:])](shape).astype(np.float32)
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (2, 48, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def found(tensors, images, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    save_file(tensors, path)
    params = read_network("inception", path)
    return jax.jit(Inception().apply)({"params": params}, images)


def agree(found, expected):
    """The first images' outputs, to 1e-5 of the largest."""
    for name in OUTPUTS:
        wanted = expected[name].numpy()
        given = np.asarray(found[name])[: len(wanted)]
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(given, wanted, rtol=0, atol=1e-5 * scale, err_msg=name)


def test_shapes(found):
    shapes = {name: (array.shape, array.dtype.name) for name, array in found.items()}
    sizes = {"pool": 2048, "spatial": 2023, "logits": 1008}
    assert shapes == {name: ((2, size), "float32") for name, size in sizes.items()}


def test_matches_the_graph_in_torch(found, tensors, images):
    """Batch normalisation is a layer of its own here, and no product is fused."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        agree(found, torch_inception(torch, tensors, images[:1]))


def torch_inception(torch, tensors, images):
    """The graph of December 2015 on images resized by picking pixels, in float64."""
    functional = torch.nn.functional
    tensors = {name: torch.from_numpy(array).double() for name, array in tensors.items()}

    def conv(x, name, stride=1, same=True):
        weight = tensors[f"{name}.conv.weight"]
        padding = [side // 2 if same else 0 for side in weight.shape[2:]]
        x = functional.conv2d(x, weight, stride=stride, padding=padding)
        parts = (tensors[f"{name}.bn.{p}"] for p in ("running_mean", "running_var"))
        x = functional.batch_norm(
            x, *parts, tensors[f"{name}.bn.weight"], tensors[f"{name}.bn.bias"], eps=1e-3
        )
        return functional.relu(x)

    def chain(x, names, **last):
        *first, final = names.split()
        for name in first:
            x = conv(x, name)
        return conv(x, final, **last)

    mean = functools.partial(
        functional.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False
    )
    same_max = functools.partial(functional.max_pool2d, kernel_size=3, stride=1, padding=1)
    halved = functools.partial(functional.max_pool2d, kernel_size=3, stride=2)
    reduce = {"stride": 2, "same": False}

    def block(x, name, branches, pool):
        parts = [chain(x, branch.replace("~", f"{name}.branch")) for branch in branches]
        return torch.cat([*parts, conv(pool(x), f"{name}.branch_pool")], 1)

    def reduction(x, name, branches):
        parts = [chain(x, branch.replace("~", f"{name}.branch"), **reduce) for branch in branches]
        return torch.cat([*parts, halved(x)], 1)

    x = torch.from_numpy(naive_resize(images).transpose(0, 3, 1, 2))
    x = conv((x - 128) / 128, "Conv2d_1a_3x3", **reduce)
    x = conv(conv(x, "Conv2d_2a_3x3", same=False), "Conv2d_2b_3x3")
    x = conv(conv(halved(x), "Conv2d_3b_1x1"), "Conv2d_4a_3x3", same=False)
    x = halved(x)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = block(x, name, ["~1x1", "~5x5_1 ~5x5_2", "~3x3dbl_1 ~3x3dbl_2 ~3x3dbl_3"], mean)
    x = reduction(x, "Mixed_6a", ["~3x3", "~3x3dbl_1 ~3x3dbl_2 ~3x3dbl_3"])
    long = " ".join(f"~7x7dbl_{i}" for i in range(1, 6))
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        if name == "Mixed_6d":
            spatial = conv(x, "Mixed_6d.branch1x1")[:, :7].permute(0, 2, 3, 1).flatten(1)
        x = block(x, name, ["~1x1", "~7x7_1 ~7x7_2 ~7x7_3", long], mean)
    last = ["~3x3_1 ~3x3_2", "~7x7x3_1 ~7x7x3_2 ~7x7x3_3 ~7x7x3_4"]
    x = reduction(x, "Mixed_7a", last)
    split = ["~3x3_1 ~3x3_2a", "~3x3_1 ~3x3_2b"]
    split += ["~3x3dbl_1 ~3x3dbl_2 ~3x3dbl_3a", "~3x3dbl_1 ~3x3dbl_2 ~3x3dbl_3b"]
    x = block(x, "Mixed_7b", ["~1x1", *split], mean)
    x = block(x, "Mixed_7c", ["~1x1", *split], same_max)
    pool = x.mean((2, 3))
    return dict(zip(OUTPUTS, (pool, spatial, pool @ tensors["fc.weight"].T), strict=True))


def naive_resize(images):
    """Bilinear from the pixels at and after i n / 299, in float64."""
    images = images.astype(np.float64)
    for axis in (1, 2):
        n = images.shape[axis]
        place = np.arange(299) * n / 299
        low = np.floor(place).astype(int)
        share = (place - low).reshape(-1, 1, 1) if axis == 1 else (place - low).reshape(-1, 1)
        high = np.minimum(low + 1, n - 1)
        images = images.take(low, axis) * (1 - share) + images.take(high, axis) * share
    return images


def test_matches_torch_fidelity(found, tensors, images, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        pytest.skip("torch-fidelity is not installed")
    # The package imports torchvision for other networks; this one can do without.
    package = types.ModuleType("torch_fidelity")
    package.__path__ = spec.submodule_search_locations
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path / "inception.pth"
    torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, path)
    features = ["2048", "logits_unbiased"]
    net = module.FeatureExtractorInceptionV3("inception", features, str(path))
    spatial = []
    net.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, out: spatial.append(out))
    pool, logits = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    spatial = spatial[0][:, :7].permute(0, 2, 3, 1).flatten(1)
    agree(found, {"pool": pool, "spatial": spatial, "logits": logits})
