"""SigLIP2's vision tower (NaFlex): its tensor names, and its arrays in the encoder's layout.

The names are Hugging Face's. They stand in SigLIP2's own files, and a published tokenizer repeats
them for its frozen copy. Of a tower the pooling head is not read, nor is the text tower.
"""

import os
import re
from collections.abc import Mapping

import flax.linen as nn
import jax
import numpy as np

from bar_jax.pretrained import manifest
from bar_jax.pretrained.files import read_tensors
from bar_jax.pretrained.layout import Layout, layer_norm, linear, same, to_ours, to_published
from bar_jax.pretrained.outside import Network
from bar_jax.runtime.errors import InputError
from bar_jax.tokenizers.bar_fsq import BarFSQ
from bar_jax.training.restore import init_tokenizer

NETWORK = Network(
    file="model.safetensors",
    origin="huggingface.co/google/siglip2-so400m-patch16-naflex (or a published bar_fsq file)",
)
ENCODER = ("patch_embedding", "encoder_vit")  # the parts of a tokenizer that are SigLIP2

# What the names of a tower start with: in SigLIP2's files (the last where the tower was saved
# alone), and in published tokenizers.
PREFIXES = ("vision_model.", "encoder.siglip.", "")
NOT_READ = "head."  # the pooling head
PATCH_EMBEDDING = "embeddings.patch_embedding.weight"
POSITIONS = "embeddings.position_embedding.weight"


def encoder_layout(embeddings: str, layers: str, norm: str) -> Layout:
    """The encoder of a tokenizer, {patch_embedding, encoder_vit}.

    Args:
      embeddings, layers, norm: what the published names of these parts start with.
    """
    block = f"{layers}.{{layer}}"
    return {
        **linear("patch_embedding", f"{embeddings}.patch_embedding"),
        **same("encoder_vit/position_embedding", f"{embeddings}.position_embedding.weight"),
        **layer_norm("encoder_vit/blocks/attention_norm", f"{block}.layer_norm1"),
        "encoder_vit/blocks/qkv/kernel": (
            f"{block}.self_attn.{{qkv}}_proj.weight",
            "layer qkv (heads c) i -> layer i qkv heads c",
        ),
        "encoder_vit/blocks/qkv/bias": (
            f"{block}.self_attn.{{qkv}}_proj.bias",
            "layer qkv (heads c) -> layer qkv heads c",
        ),
        **linear("encoder_vit/blocks/out", f"{block}.self_attn.out_proj", inputs="heads c"),
        **layer_norm("encoder_vit/blocks/mlp_norm", f"{block}.layer_norm2"),
        **linear("encoder_vit/blocks/mlp/up", f"{block}.mlp.fc1"),
        **linear("encoder_vit/blocks/mlp/down", f"{block}.mlp.fc2"),
        **layer_norm("encoder_vit/norm", norm),
    }


def fields(depth: int) -> dict:
    """What the fields of the layout's names stand for."""
    return {"layer": range(depth), "qkv": "qkv"}


def encoder_params(
    tensors: Mapping[str, np.ndarray], *, depth: int, heads: int, prefix: str = PREFIXES[0]
) -> dict:
    """Parameters {patch_embedding, encoder_vit} of `BarFSQ` from a vision tower.

    Args:
      tensors: published names -> arrays; those of other parts are not read.
      prefix: what the tower's names start with, one of PREFIXES.

    Raises:
      InputError: naming a tensor that is missing.
    """
    return to_ours(tensors, _tower(prefix), fields(depth), heads=heads)


def encoder_tensors(params: Mapping, prefix: str = PREFIXES[0]) -> dict:
    """The inverse of `encoder_params`; `params` may hold more than the encoder."""
    depth = params["encoder_vit"]["blocks"]["qkv"]["bias"].shape[0]
    return to_published(params, _tower(prefix), fields(depth))


def init_encoder(tokenizer: BarFSQ, key: jax.Array) -> dict:
    """Fresh parameters of a tokenizer's encoder, with logical axis names."""
    params = init_tokenizer(tokenizer, key)
    return {part: params[part] for part in ENCODER}


def encoder_shapes(tokenizer: BarFSQ, prefix: str = PREFIXES[0]) -> dict[str, manifest.Shape]:
    """Names and shapes of the vision tower that a tokenizer's encoder needs."""
    make = lambda key: encoder_tensors(nn.unbox(init_encoder(tokenizer, key)), prefix)
    needed = jax.eval_shape(make, jax.random.key(0))
    return {name: tensor.shape for name, tensor in needed.items()}


def read_encoder(tokenizer: BarFSQ, path: str | os.PathLike) -> dict:
    """SigLIP2's vision tower from a file, for a tokenizer's encoder.

    Args:
      path: SigLIP2 (NaFlex) as Hugging Face has it, with its text tower or without; or a published
        tokenizer, whose frozen copy is read.

    Returns:
      Parameters {patch_embedding, encoder_vit}, numpy arrays: what the tokenizer's encoder starts
      from, and, kept as they are, what gives the features to align with (`BarFSQ.features`).

    Raises:
      InputError: a file that cannot be read, another variant, or every tensor that does not fit.
    """
    found = read_tensors(path)
    prefix = find_prefix(path, found)
    needed = encoder_shapes(tokenizer, prefix)
    has = sizes(found, prefix)
    template = {name: np.broadcast_to(np.float32(0), shape) for name, shape in needed.items()}
    wants = sizes(template, prefix)
    if has != wants:
        in_words = lambda sizes: ", ".join(f"{name} {size}" for name, size in sizes.items())
        expected = f"{in_words(wants)}, as model.tokenizer.encoder says"
        raise InputError(path, f"a SigLIP2 of {in_words(has)}", expected)
    found = {name: tensor for name, tensor in found.items() if name.startswith(prefix)}
    optional = {name: None for name in found if name.startswith(f"{prefix}{NOT_READ}")}
    manifest.check(path, found, needed, optional, "the configured tokenizer's encoder")
    depth, heads = tokenizer.encoder["depth"], tokenizer.encoder["heads"]
    return encoder_params(found, depth=depth, heads=heads, prefix=prefix)


def find_prefix(path: object, tensors: Mapping[str, np.ndarray]) -> str:
    """What the names of a file's vision tower start with, one of PREFIXES.

    Args:
      path: of the file, for the message.
      tensors: of SigLIP2, of its vision tower alone, or of a published tokenizer.

    Raises:
      InputError: if there is no tower, or it is one of fixed resolution.
    """
    expected = "SigLIP2's vision tower (NaFlex), or a published BAR-FSQ tokenizer with its copy"
    for prefix in PREFIXES:
        patches = tensors.get(f"{prefix}{PATCH_EMBEDDING}")
        if patches is None:
            continue
        if patches.ndim != 2:
            shape = list(patches.shape)
            found = f"a SigLIP of fixed resolution (its patch embedding is a convolution, {shape})"
            raise InputError(path, found, expected)
        return prefix
    raise InputError(path, f"no tensor {PREFIXES[0]}{PATCH_EMBEDDING}", expected)


def sizes(tensors: Mapping[str, object], prefix: str) -> dict[str, int]:
    """The sizes in which variants of SigLIP2 differ, from names and shapes of a tower."""
    width, pixels = tensors[f"{prefix}{PATCH_EMBEDDING}"].shape
    found = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    layers = (re.match(re.escape(f"{prefix}encoder.layers.") + r"(\d+)\.", name) for name in found)
    positions = tensors.get(f"{prefix}{POSITIONS}")
    return {
        "width": width,
        "depth": len({layer[1] for layer in layers if layer}),
        "positions": 0 if positions is None else positions.shape[0],
        "values of a patch": pixels,
    }


def _tower(prefix: str) -> Layout:
    parts = ("embeddings", "encoder.layers", "post_layernorm")
    return encoder_layout(*(f"{prefix}{part}" for part in parts))
