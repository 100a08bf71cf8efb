"""State dicts in files: `.safetensors`, `.npz`, and PyTorch's `.bin`, `.pth`, `.pt`, `.ckpt`.

Nothing in a file is ever executed: pickles are read by torch's weights-only loader alone.
"""

import argparse
import difflib
import json
import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bar_jax.runtime.errors import InputError
from bar_jax.runtime.files import replacing

# Prefixes of names that wrappers of a model leave in training.
PREFIXES = ("_orig_mod.", "module.")
# Keys of the state dict in a training checkpoint, the one to sample from first.
WRAPPINGS = ("model_ema", "ema", "state_dict", "model")

# What a pickle may hold beside tensors and plain containers: the options that a training run keeps
# in its checkpoints, which are nothing but named values.
ALLOWED = [argparse.Namespace]

EXPECTED = "a whole state dict: names -> tensors"


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a file by name, floating-point ones as float32.

    A `.safetensors` file and a zipped PyTorch one are mapped into memory: float32 tensors are read
    from the disk when they are used, so that a file of some gigabytes need not fit in twice.

    Args:
      path: the suffix gives the format. One level of wrapping ({"model": ...}) is taken off, and
        so are the prefixes of compiled and distributed models (`_orig_mod.module.`).

    Raises:
      InputError: no such file, an unknown suffix, a damaged file or not a state dict.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise InputError(path, f"the suffix {path.suffix!r}", f"one of {', '.join(READERS)}")
    if not path.is_file():
        folder = path.parent
        names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
        # One published file is spelt bar_sfq_10bits_res512.bin.
        close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.8)
        hint = f"; did you mean {folder / close[0]}?" if close else ""
        raise InputError(path, "no such file", f"a file of published weights{hint}")
    _refuse_stand_in(path)
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in READERS[path.suffix](path).items():
        stripped = re.sub(rf"^({'|'.join(map(re.escape, PREFIXES))})+", "", name)
        if stripped in tensors:
            raise InputError(path, f"two tensors {stripped}, but for a prefix", EXPECTED)
        if not jnp.issubdtype(tensor.dtype, jnp.number) and tensor.dtype != bool:
            raise InputError(path, f"{name} of type {tensor.dtype}", EXPECTED)
        if jnp.issubdtype(tensor.dtype, jnp.floating):  # bfloat16 too
            tensor = tensor.astype(np.float32, copy=False)
        tensors[stripped] = tensor
    return tensors


def _refuse_stand_in(path: Path) -> None:
    """Refuses what a download may leave in a file's place."""
    with path.open("rb") as file:
        start = file.read(256).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        found = "an unreadable file: a pointer of Git LFS"
        raise InputError(path, found, "the file it stands for: git lfs pull")
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        found = "an unreadable file: a web page, such as of an error or a login"
        raise InputError(path, found, f"{EXPECTED}: download the file itself")


def write_safetensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a `.safetensors` file, whole or not at all.

    Raises:
      InputError: if the file cannot be written there.
    """
    rows = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    try:
        with replacing(path) as temporary:
            save_file(rows, temporary, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise InputError(path, _short(error), "a path that can be written to") from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, "np") as file:  # checks the header and the length of the file
            names = list(file.keys())
    except Exception as error:  # SafetensorError, OSError
        raise InputError(path, f"an unreadable file ({_short(error)})", EXPECTED) from error
    # Mapped here: the package copies every tensor, and its numpy does not know bfloat16.
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    data = np.memmap(path, np.uint8, "r")[8 + size :]
    tensors = {}
    for name in names:
        dtype = SAFETENSORS_DTYPES.get(header[name]["dtype"])
        if dtype is None:
            found = f"{name} of type {header[name]['dtype']}"
            raise InputError(path, found, f"one of {', '.join(SAFETENSORS_DTYPES)}")
        begin, end = header[name]["data_offsets"]
        tensors[name] = data[begin:end].view(dtype).reshape(header[name]["shape"])
    return tensors


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # BadZipFile, EOFError, OSError, ValueError, zlib.error, ...
        raise InputError(path, f"an unreadable file ({_short(error)})", EXPECTED) from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        expected = 'PyTorch to read it with: pip install "bar_jax[torch]"'
        raise InputError(path, f"a {path.suffix} file", expected) from error
    try:
        zipped = zipfile.is_zipfile(path)  # only the format since PyTorch 1.6 can be mapped
        with (
            warnings.catch_warnings(action="ignore"),  # of what ends in an error or is fine
            torch.serialization.safe_globals(ALLOWED),
        ):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # RuntimeError, UnpicklingError, EOFError, KeyError, ...
        called = re.search(r"GLOBAL ([\w.]+)", str(error))  # what the pickle asks for
        found = f"a pickle that calls {called[1]}" if called else "an unreadable file"
        raise InputError(path, f"{found}; nothing of it was run", EXPECTED) from error
    tensors = _unwrapped(loaded, torch.Tensor)
    if not _is_state_dict(tensors, torch.Tensor):
        raise InputError(path, _kind(tensors), EXPECTED)
    floating = lambda tensor: tensor.float() if tensor.is_floating_point() else tensor
    try:
        return {name: floating(tensor.detach()).numpy() for name, tensor in tensors.items()}
    except (RuntimeError, TypeError, NotImplementedError) as error:  # sparse, quantised, meta
        raise InputError(path, f"no plain arrays ({_short(error)})", EXPECTED) from error


def _is_state_dict(loaded: object, tensor: type) -> bool:
    if not isinstance(loaded, dict) or not loaded:
        return False
    return all(isinstance(k, str) and isinstance(v, tensor) for k, v in loaded.items())


def _unwrapped(loaded: object, tensor: type) -> object:
    """The state dict inside a training checkpoint; anything else as it is."""
    if isinstance(loaded, dict):
        for name in WRAPPINGS:
            if _is_state_dict(loaded.get(name), tensor):
                return loaded[name]
    return loaded


def _kind(loaded: object) -> str:
    """What was found in place of a state dict."""
    kind = type(loaded).__name__
    if not isinstance(loaded, dict):
        return kind
    entries = [f"{key!r}: {type(value).__name__}" for key, value in loaded.items()]
    return f"{kind} of {', '.join(entries[:3])}{', ...' * (len(entries) > 3)}" if entries else "{}"


def _short(error: Exception) -> str:
    """An error's message in one line, cut off where it goes on."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else f"{text[:117]}..."


READERS = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".bin": _read_torch,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".ckpt": _read_torch,
}
SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
