"""How published tensors and our parameters hold the same numbers, written once for both ways.

A layout maps a path of ours to a published name and the einops pattern that takes the published
array to ours; read backwards, it exports. Fields of a name stand for several tensors, which are
stacked along axes that the pattern names first:

    "blocks/qkv/kernel": (
        "blocks.{layer}.attn.qkv.weight",
        "layer (three heads c) i -> layer i three heads c",
    )
"""

import itertools
import re
import string
from collections.abc import Mapping, Sequence

import numpy as np
from einops import rearrange

from bar_jax.runtime.errors import InputError

Layout = Mapping[str, tuple[str, str]]
Fields = Mapping[str, Sequence]  # what the fields of names stand for: {"layer": range(24)}


def same(ours: str, theirs: str) -> Layout:
    """An array that is the same on both sides."""
    return {ours: (theirs, "... -> ...")}


def linear(ours: str, theirs: str, outputs: str = "o", inputs: str = "i") -> Layout:
    """A linear layer: published [out, in], ours [in, out], each split into the axes given."""
    axes = "".join(f"{field} " for field in _fields(theirs))
    return {
        f"{ours}/kernel": (
            f"{theirs}.weight",
            f"{axes}({outputs}) ({inputs}) -> {axes}{inputs} {outputs}",
        ),
        f"{ours}/bias": (f"{theirs}.bias", f"{axes}({outputs}) -> {axes}{outputs}"),
    }


def conv(ours: str, theirs: str) -> Layout:
    """A convolution over an image: published [out, in, h, w], ours [h, w, in, out]."""
    return {
        f"{ours}/kernel": (f"{theirs}.weight", "o i kh kw -> kh kw i o"),
        **same(f"{ours}/bias", f"{theirs}.bias"),
    }


def layer_norm(ours: str, theirs: str) -> Layout:
    """Scale and bias of a LayerNorm."""
    return same(f"{ours}/scale", f"{theirs}.weight") | same(f"{ours}/bias", f"{theirs}.bias")


def to_ours(
    tensors: Mapping[str, np.ndarray], layout: Layout, fields: Fields, **sizes: int
) -> dict:
    """Published tensors as a tree of parameters.

    Args:
      sizes: of the axes that a pattern splits: `heads=12`.

    Raises:
      InputError: naming a tensor that is missing.
    """
    params: dict = {}
    for path, (template, pattern) in layout.items():
        names, counts = _names(template, fields)
        for name in names:
            if name not in tensors:
                raise InputError("weights", f"no tensor {name}", "the published model's tensors")
        stacked = np.stack([np.asarray(tensors[name]) for name in names])
        stacked = stacked.reshape(*counts, *stacked.shape[1:])
        axes = re.findall(r"\w+", pattern)
        known = {axis: size for axis, size in sizes.items() if axis in axes}
        *parents, leaf = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = rearrange(stacked, pattern, **known)
    return params


def to_published(params: Mapping, layout: Layout, fields: Fields) -> dict:
    """The inverse of `to_ours`: views of the parameters where these are numpy arrays."""
    tensors = {}
    for path, (template, pattern) in layout.items():
        array = params
        for key in path.split("/"):
            array = array[key]
        theirs, ours = pattern.split(" -> ")
        array = rearrange(array, f"{ours} -> {theirs}")
        names, counts = _names(template, fields)
        tensors |= {name: array[i] for name, i in zip(names, np.ndindex(*counts), strict=True)}
    return tensors


def count(tensors: Mapping[str, object], pattern: str) -> int:
    """How many numbered parts the names have; the pattern's group is the number."""
    found = [re.match(pattern, name) for name in tensors]
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _fields(template: str) -> list[str]:
    return [field for _, field, *_ in string.Formatter().parse(template) if field]


def _names(template: str, fields: Fields) -> tuple[list[str], list[int]]:
    """All names that a template stands for, and how many values each of its fields has."""
    used = _fields(template)
    values = itertools.product(*(fields[field] for field in used))
    names = [template.format(**dict(zip(used, chosen, strict=True))) for chosen in values]
    return names, [len(fields[field]) for field in used]
