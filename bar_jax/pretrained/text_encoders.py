"""Frozen text encoders from Hugging Face's folders: Qwen2, BERT (all-MiniLM) and CLIP's.

A folder holds `config.json`, the weights (`model.safetensors`, or several with
`model.safetensors.index.json`) and `tokenizer.json`. A new kind is one function here and one line
in KINDS.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from flax.traverse_util import flatten_dict

from bar_jax.nn.bert import BERT
from bar_jax.nn.clip import CLIP
from bar_jax.nn.qwen2 import Qwen2
from bar_jax.pretrained import manifest
from bar_jax.pretrained.bert import bert_params
from bar_jax.pretrained.clip import clip_text_params
from bar_jax.pretrained.files import read_tensors
from bar_jax.pretrained.qwen2 import qwen2_params
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.files import digest

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
# A tokenizer may know fewer tokens than the embedding has rows, which is filled up to a round
# number; one that knows far fewer is another model's.
KNOWN = 0.9


class TextEncoder(NamedTuple):
    """A frozen network that turns token ids into hidden states.

    Attributes:
      module, method: what is applied: (token ids [B, T], mask [B, T]) -> [B, T, width] float32.
      params: numpy arrays.
      width: channels of a hidden state.
      positions: tokens that a text may have at most; None: any number.
      tokenizer: a `tokenizers.Tokenizer`.
      fingerprint: of weights, sizes and tokenizer, 16 hexadecimal digits.
    """

    module: nn.Module
    method: str
    params: dict
    width: int
    positions: int | None
    tokenizer: object
    fingerprint: str


class Texts(NamedTuple):
    """Captions as token ids, in front of each the prompt, whose positions are cut off afterwards.

    Attributes:
      tokens: [B, P + T] int32, filled up with zeros at the end.
      mask: bool [B, P + T], False where they are filled up.
      prompt: first and last position (exclusive) of the prompt in each row.
      cut: captions that were longer than T tokens.
    """

    tokens: np.ndarray
    mask: np.ndarray
    prompt: tuple[int, int]
    cut: int


def read_text_encoder(folder: str | Path, dtype: jnp.dtype = jnp.float32) -> TextEncoder:
    """The text encoder in a folder as Hugging Face keeps it.

    Args:
      dtype: what it computes in.

    Raises:
      InputError: a file is missing, damaged or of an architecture that is not here, or the
        tokenizer is another model's.
    """
    folder = Path(folder)
    path = folder / "config.json"
    config = _read_json(path)
    kind = config.get("model_type")
    if kind not in KINDS:
        raise InputError(path, f"model_type {kind!r}", " | ".join(KINDS))
    files = _weight_files(folder)
    tensors = {}
    for file in files:
        tensors |= read_tensors(file)
    encoder = KINDS[kind](_Sizes(path, config), tensors, dtype)
    _check_shapes(files[0], encoder)
    manifest.check_finite(files[0], flatten_dict(encoder.params, sep="/"))
    tokenizer = _read_tokenizer(folder / "tokenizer.json", encoder.module.vocabulary)
    own = "".join(map(digest, (path, folder / "tokenizer.json", *files)))
    fingerprint = hashlib.sha256(own.encode()).hexdigest()[:16]
    return encoder._replace(tokenizer=tokenizer, fingerprint=fingerprint)


def tokenize(encoder: TextEncoder, captions: Sequence[str], length: int, prompt: str = "") -> Texts:
    """Captions as token ids, each with the tokenizer's special tokens, at most `length` of them.

    Of a longer caption the last words give way; a special token at its end stays.

    Args:
      prompt: a text that is put in front of every caption, tokenised apart from it.

    Raises:
      InputError: an empty caption, or more tokens than the encoder has positions for.
    """
    encode = encoder.tokenizer.encode
    front = encode(prompt, add_special_tokens=False).ids if prompt else []
    if encoder.positions is not None and len(front) + length > encoder.positions:
        found = f"{len(front)} of the prompt and {length} of a caption"
        raise InputError("length", f"{found}", f"together at most {encoder.positions} tokens")
    tokens = np.zeros((len(captions), len(front) + length), np.int32)
    mask = np.zeros(tokens.shape, bool)
    lead, cut = 0, 0
    for row, caption in enumerate(captions):
        if not caption.strip():
            raise InputError(f"caption {row}", repr(caption), "a text")
        encoding = encode(caption)
        words = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
        lead, ids = (words[0] if words else 0), encoding.ids
        if len(ids) > length:
            end = ids[words[-1] + 1 :] if words else []
            ids, cut = ids[: length - len(end)] + end, cut + 1
        ids = [*ids[:lead], *front, *ids[lead:]]
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
    return Texts(tokens, mask, (lead, lead + len(front)), cut)


def hidden_states(encoder: TextEncoder, params: dict, texts: Texts) -> tuple[jax.Array, np.ndarray]:
    """Hidden states [B, T, width] float32 of captions, and their mask [B, T], without the prompt.

    Args:
      params: those of the encoder, on the devices.
    """
    states = _apply(encoder.module, encoder.method, params, texts.tokens, texts.mask)
    begin, end = texts.prompt
    without = lambda x, library: library.concatenate([x[:, :begin], x[:, end:]], axis=1)
    return without(states, jnp), without(texts.mask, np)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(module, method, params, tokens, mask):
    return module.apply({"params": params}, tokens, mask, method=method)


class _Sizes:
    """The entries of a `config.json`, which name themselves where they are missing or others."""

    def __init__(self, path: Path, values: Mapping[str, object]):
        self._path, self._values = path, values

    def __getitem__(self, name: str):
        if name not in self._values:
            raise InputError(self._path, f"no {name}", f"a number for {name}")
        return self._values[name]

    def part(self, name: str) -> "_Sizes":
        """A nested config where there is one."""
        return _Sizes(self._path, self._values.get(name) or self._values)

    def check(self, name: str, *known: object) -> None:
        """Refuses an entry with a value other than those known; None among them: or none."""
        value = self._values.get(name)
        if value not in known:
            raise InputError(self._path, f"{name} {value!r}", " | ".join(map(repr, known)))

    def transformer(self) -> dict[str, int]:
        """The sizes that all but CLIP's are made with."""
        return dict(
            width=self["hidden_size"],
            depth=self["num_hidden_layers"],
            heads=self["num_attention_heads"],
            mlp_width=self["intermediate_size"],
            vocabulary=self["vocab_size"],
        )

    def rotary_base(self) -> float:
        """Of the rotary embedding; where it is scaled for longer texts, it is refused."""
        nested = self._values.get("rope_parameters") or self._values.get("rope_scaling") or {}
        scaling = nested.get("rope_type", nested.get("type", "default"))
        if scaling not in ("default", "mrope"):  # of a text alone, mrope turns as any
            raise InputError(self._path, f"rotary scaling {scaling!r}", "none")
        return nested["rope_theta"] if "rope_theta" in nested else self["rope_theta"]


def _qwen2(config: _Sizes, tensors: Mapping[str, np.ndarray], dtype: jnp.dtype) -> TextEncoder:
    sizes = config.part("text_config")
    sizes.check("hidden_act", "silu")
    sizes.check("use_sliding_window", False, None)
    module = Qwen2(
        **sizes.transformer(),
        kv_heads=sizes["num_key_value_heads"],
        rotary_base=sizes.rotary_base(),
        norm_eps=sizes["rms_norm_eps"],
        dtype=dtype,
    )
    own = _stripped(tensors, r"(model\.)?(language_model\.)?(?=embed_tokens|layers|norm)")
    params = qwen2_params(own, heads=module.heads, kv_heads=module.kv_heads)
    return TextEncoder(module, "__call__", params, module.width, None, None, "")


def _bert(config: _Sizes, tensors: Mapping[str, np.ndarray], dtype: jnp.dtype) -> TextEncoder:
    config.check("hidden_act", "gelu")
    config.check("position_embedding_type", "absolute", None)
    config.check("type_vocab_size", 2, None)
    module = BERT(
        **config.transformer(),
        positions=config["max_position_embeddings"],
        norm_eps=config["layer_norm_eps"],
        dtype=dtype,
    )
    own = _stripped(tensors, r"(bert\.)?(?=embeddings|encoder)")
    params = bert_params(own, heads=module.heads)
    return TextEncoder(module, "__call__", params, module.width, module.positions, None, "")


def _clip(config: _Sizes, tensors: Mapping[str, np.ndarray], dtype: jnp.dtype) -> TextEncoder:
    del dtype  # float32, as where images and texts are compared
    sizes = config.part("text_config")
    sizes.check("hidden_act", "quick_gelu", None)
    module = CLIP(
        text_width=sizes["hidden_size"],
        text_depth=sizes["num_hidden_layers"],
        text_heads=sizes["num_attention_heads"],
        vocabulary=sizes["vocab_size"],
        context=sizes["max_position_embeddings"],
    )
    sizes.check("intermediate_size", 4 * module.text_width)
    own = _stripped(tensors, r"(text_model\.)?(?=embeddings|encoder|final_layer_norm)")
    named = {f"text_model.{name}": tensor for name, tensor in own.items()}
    params = clip_text_params(named, heads=module.text_heads)
    return TextEncoder(module, "text_states", params, module.text_width, module.context, None, "")


# By `model_type` of config.json; of Qwen2-VL the part that reads text.
KINDS: Mapping[str, Callable[[_Sizes, Mapping[str, np.ndarray], jnp.dtype], TextEncoder]] = {
    "qwen2": _qwen2,
    "qwen2_vl": _qwen2,
    "bert": _bert,
    "clip": _clip,
    "clip_text_model": _clip,
}


def _stripped(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Tensors whose names begin with a prefix (a pattern), without it; others are not read."""
    return {
        name[match.end() :]: t for name, t in tensors.items() if (match := re.match(prefix, name))
    }


def _weight_files(folder: Path) -> list[Path]:
    """The one file of weights, or those that an index names."""
    if not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    index = _read_json(folder / INDEX)
    names = sorted(set(index.get("weight_map", {}).values()))
    if not names:
        raise InputError(folder / INDEX, "no weight_map", "names of tensors and their files")
    return [folder / name for name in names]


def _read_json(path: Path) -> dict:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        expected = "a folder as Hugging Face keeps a model: config.json, weights, tokenizer.json"
        raise InputError(path, "no such file", expected) from error
    except (OSError, ValueError) as error:
        raise InputError(path, f"an unreadable file ({error})", "JSON") from error
    if not isinstance(values, dict):
        raise InputError(path, f"JSON of type {type(values).__name__}", "an object")
    return values


def _read_tokenizer(path: Path, vocabulary: int):
    """The tokenizer, which neither cuts nor fills up."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        expected = 'the package tokenizers: pip install "bar_jax[text]"'
        raise InputError(path, "nothing to read it with", expected) from error
    if not path.is_file():
        raise InputError(path, "no such file", "the tokenizer of the text encoder")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing more particular
        raise InputError(path, f"an unreadable file ({error})", "a tokenizer.json") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    last = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if not KNOWN * vocabulary <= last + 1 <= vocabulary:
        found = f"a vocabulary of {last + 1} tokens"
        raise InputError(path, found, f"that of the weights, which have {vocabulary}")
    return tokenizer


def _check_shapes(path: Path, encoder: TextEncoder) -> None:
    """Checks that the weights are of the sizes that `config.json` states."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    init = lambda key: encoder.module.init(key, tokens, tokens > 0, method=encoder.method)
    wanted = flatten_dict(meta.unbox(jax.eval_shape(init, jax.random.key(0)))["params"], sep="/")
    found = flatten_dict(encoder.params, sep="/")
    for name, array in wanted.items():
        shape = found[name].shape if name in found else None
        if shape != array.shape:
            raise InputError(
                path, f"{name} of shape {shape}", f"{array.shape}, as config.json says"
            )
