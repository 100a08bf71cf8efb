"""The published masked-bit generators: their tensor names, and their arrays in our layout."""

from collections.abc import Callable, Mapping

import numpy as np

from bar_jax.errors import InputError

# Published linear layers are [out, in]; ours [in, out], with `out` (or `in`) split into parts.
Layout = Callable[[np.ndarray], np.ndarray]


def _kernel(*out: int) -> Layout:
    return lambda w: w.T.reshape(w.shape[1], *out) if out else w.T


def _split(*shape: int) -> Layout:
    return lambda w: w.reshape(shape)


def _same(w: np.ndarray) -> np.ndarray:
    return w


def _linear(ours: str, theirs: str, *out: int) -> dict[str, tuple[str, Layout]]:
    return {
        f"{ours}/kernel": (f"{theirs}.weight", _kernel(*out)),
        f"{ours}/bias": (f"{theirs}.bias", _split(*out) if out else _same),
    }


def _trunk_layout(heads: int) -> dict[str, tuple[str, Layout]]:
    """Our path in the trunk -> (published name, layout); `{}` stands for the layer."""
    block = "blocks.{}"
    first = lambda w: w.reshape(w.shape[-2:]) if w.shape[-2] > 1 else w.reshape(-1)
    return {
        "start": ("cls_token", first),
        "own_place_embedding": ("pos_embed", first),
        "target_place_embedding": ("target_aware_pos_embed", first),
        "adaln_index_embedding": ("timesteps_embeddings", first),
        "class_embedding": ("embeddings.weight", _same),
        "bit_embedding": ("input_embeddings.weight", _same),
        **_linear("token_proj", "input_merge"),
        "norm/scale": ("norm.weight", _same),
        **_linear("output_proj", "latent_condition_proj"),
        "blocks/attention_norm/scale": (f"{block}.norm1.weight", _same),
        "blocks/mlp_norm/scale": (f"{block}.norm2.weight", _same),
        "blocks/query_norm/scale": (f"{block}.attn.q_norm.weight", _same),
        "blocks/key_norm/scale": (f"{block}.attn.k_norm.weight", _same),
        **_linear("blocks/qkv", f"{block}.attn.qkv", 3, heads, -1),
        "blocks/out/kernel": (
            f"{block}.attn.proj.weight",
            lambda w: w.T.reshape(heads, -1, w.shape[0]),
        ),
        "blocks/out/bias": (f"{block}.attn.proj.bias", _same),
        **_linear("blocks/mlp/up", f"{block}.mlp.w12", 2, -1),
        **_linear("blocks/mlp/down", f"{block}.mlp.w3"),
        **_linear("blocks/adaln", f"{block}.adaLN_modulation.1", 6, -1),
    }


def _head_layout() -> dict[str, tuple[str, Layout]]:
    """Our path in the masked-bit head -> (published name, layout)."""
    block = "transformer.{}"
    return {
        "bit_embedding": ("input_embed.weight", _same),
        **_linear("in_proj", "input_proj"),
        "in_norm/scale": ("ln_pre.weight", _same),
        "time_embed_frequencies": ("t_embedder.W", _same),
        **_linear("time_embed_in", "t_embedder.mlp.0"),
        **_linear("time_embed_out", "t_embedder.mlp.2"),
        "blocks/norm/scale": (f"{block}.in_ln.weight", _same),
        **_linear("blocks/mlp/up", f"{block}.mlp.w12", 2, -1),
        **_linear("blocks/mlp/down", f"{block}.mlp.w3"),
        **_linear("blocks/adaln", f"{block}.adaLN_modulation.1", 3, -1),
        "out_norm/scale": ("adaln_before_head.norm_final.weight", _same),
        **_linear("out_adaln", "adaln_before_head.adaLN_modulation.1", 2, -1),
        **_linear("out_embed", "output_embed", -1, 2),
    }


def _convert(
    tensors: Mapping[str, np.ndarray],
    layout: dict[str, tuple[str, Layout]],
    prefix: str,
    depth: int,
) -> dict:
    params: dict = {}
    for path, (name, to_ours) in layout.items():
        names = [prefix + name.format(i) for i in range(depth)] if "{}" in name else [prefix + name]
        missing = [n for n in names if n not in tensors]
        if missing:
            raise InputError("weights", f"no tensor {missing[0]}", "a published generator")
        arrays = [to_ours(np.asarray(tensors[n])) for n in names]
        *parents, leaf = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = np.stack(arrays) if "{}" in name else arrays[0]
    return params


def head_params(tensors: Mapping[str, np.ndarray], depth: int, prefix: str = "") -> dict:
    """Parameters of `MaskedBitHead` from published tensors whose names start with `prefix`.

    Raises:
      InputError: naming a tensor that is missing.
    """
    return _convert(tensors, _head_layout(), prefix, depth)


def generator_params(
    tensors: Mapping[str, np.ndarray], *, depth: int, heads: int, head_depth: int
) -> dict:
    """Parameters of `MaskedBitGenerator` from a published state dict.

    Args:
      tensors: published names -> arrays. Tables of the rotary embedding are not read.
      depth, heads: of the trunk.
      head_depth: layers of the head.

    Raises:
      InputError: naming a tensor that is missing.
    """
    return {
        "trunk": _convert(tensors, _trunk_layout(heads), "", depth),
        "head": head_params(tensors, head_depth, "lm_head."),
    }
