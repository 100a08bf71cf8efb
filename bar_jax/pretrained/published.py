"""Published weight files and the configured models: check, read, write.

Names and shapes follow from the configured model, of any size; where it is a published one, the
manifest in `third_party/` agrees and says what else its file holds.
"""

import math
import os
import re
from collections.abc import Mapping
from types import ModuleType

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from bar_jax.bases.transform import check_invertible
from bar_jax.generators import make_generator
from bar_jax.generators.basis import MATRIX, BasisGenerator
from bar_jax.pretrained import bar_fsq, kl_vae, manifest, mar, masked_bit, xar
from bar_jax.pretrained.files import read_tensors
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime.errors import InputError
from bar_jax.tokenizers import make_tokenizer
from bar_jax.training import restore

# The kinds of which there are published weights, and what reads and writes them.
TOKENIZERS = {"bar_fsq": bar_fsq, "kl_vae": kl_vae}
GENERATORS = {"causal": masked_bit, "xar": xar, "mar": mar}
MATRIX_TENSOR = "basis"  # A of y = A x in an exported file


def check_kind(config: ConfigDict, part: str) -> None:
    """Checks that weights were published for models of the configured kind.

    Args:
      part: `tokenizer` or `generator`.

    Raises:
      InputError: naming the field.
    """
    section, kinds = "tokenizer", TOKENIZERS
    if part == "generator":
        section, kinds = "head", (_importer(config, part).HEAD,)
    found = config.model[section].kind
    if found not in kinds:
        expected = f"{' | '.join(map(repr, kinds))}: no others were published"
        raise InputError(f"model.{section}.kind", repr(found), expected)


def shapes(config: ConfigDict, part: str) -> tuple[dict[str, manifest.Shape], ...]:
    """Published names and shapes: of the tensors that a file must hold, and that it may lack.

    It may lack what is computed (rotary tables) and what only training uses (a tokenizer's feature
    predictor).
    """
    params = _params(config, part)
    needed = jax.eval_shape(lambda p: state_dict(config, part, p), params)
    needed = {name: tensor.shape for name, tensor in needed.items()}
    optional = rf"{MATRIX_TENSOR}|{_importer(config, part).OPTIONAL}"
    return needed, {name: needed.pop(name) for name in [*needed] if re.fullmatch(optional, name)}


def read(config: ConfigDict, part: str, path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a file, which are those of the configured tokenizer or generator.

    Raises:
      InputError: a file that cannot be read; or every tensor that is missing, unused or of another
        shape, and the model that the file is of; or a tokenizer for images of another size.
    """
    check_kind(config, part)
    needed, optional = shapes(config, part)
    found = read_tensors(path)
    what = f"the configured {part}"
    if part == "generator":
        manifest.check(path, found, needed, optional, what)
        return found
    not_read, unused = _importer(config, part).NOT_READ, _importer(config, part).OPTIONAL
    for name in found:
        if name.startswith(not_read) or re.fullmatch(unused, name):
            optional.setdefault(name, None)
    try:
        manifest.check(path, found, needed, optional, what)
    except InputError:
        _check_image_size(config, path, found, needed, optional)
        raise
    return found


def _check_image_size(config, path, found, needed, optional) -> None:
    """Raises InputError if the tokenizer fits but for the size of its images."""
    name = bar_fsq.DECODER_POSITIONS
    if name not in found:
        return
    stored = found[name].shape
    try:
        manifest.check(path, found, {**needed, name: stored}, optional, "")
    except InputError:
        return
    size = math.isqrt(stored[0] - 1) * config.model.tokenizer.patch_size
    expected = f"{size}: {path} has the positions of {stored[0] - 1} tokens"
    raise InputError("data.image_size", str(config.data.image_size), expected)


def load(
    config: ConfigDict, part: str, tensors: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh
) -> restore.Trained:
    """What `read` returned, as a module with parameters on the mesh, ready for use.

    A tokenizer's feature predictor, which a file may lack, is drawn from `config.seed`.
    """
    importer = _importer(config, part)
    if part == "tokenizer":
        module = restore.make_codec(config)
        params = importer.params_of(tensors, module, config.seed)
    else:
        module = restore.make_sampler(config)
        params = _generator_params(importer, module, tensors)
    del tensors  # where they are not mapped but read: no more than two copies are held
    layout = restore.param_shapes(_init(config, part), mesh)
    return restore.Trained(module, mesh_lib.place(params, layout), step=0)


def state_dict(config: ConfigDict, part: str, params: dict) -> dict[str, np.ndarray]:
    """The state dict that the published code loads: the inverse of `load`, with all buffers.

    Of a generator of real-valued tokens it is the host's, with A [N', N] beside it where the basis
    is a matrix.

    BAR-FSQ's lacks what its own files hold besides: the frozen copy of the encoder and the pooling
    head. Published code loads it with `strict=False`.

    Args:
      params: of the configured part, whole numpy arrays.
    """
    check_kind(config, part)
    importer = _importer(config, part)
    if part == "tokenizer":
        return importer.tensors_of(params, make_tokenizer(config))
    generator = make_generator(config)
    if not isinstance(generator, BasisGenerator):
        return importer.tensors_of(params, generator)
    basis = {MATRIX_TENSOR: params[MATRIX]} if MATRIX in params else {}
    return importer.tensors_of(params["host"], generator.host) | basis


def _importer(config: ConfigDict, part: str) -> ModuleType:
    """What reads and writes the weights of the configured kind."""
    kinds = TOKENIZERS if part == "tokenizer" else GENERATORS
    return kinds[config.model[part].kind]


def _generator_params(
    importer: ModuleType, module: nn.Module, tensors: Mapping[str, np.ndarray]
) -> dict:
    """Parameters of a generator as numpy arrays; a matrix basis is as it starts."""
    if not isinstance(module, BasisGenerator):
        return importer.params_of(tensors, module)
    params = importer.params_of(tensors, module.host)
    if not module.basis.has_matrix:
        return {"host": params}
    matrix = tensors.get(MATRIX_TENSOR)
    if matrix is not None:
        check_invertible(matrix, MATRIX_TENSOR)
    elif module.basis.needs_tokens:
        found = f"{module.basis.fixed!r}, which is made of a data set's tokens"
        raise InputError("model.basis.kind", found, "another to import into: the file has no basis")
    else:  # a host that was published without a basis: one to be learned on top
        matrix = module.basis.matrix(module.grid, module.native_order)
    return {"host": params, MATRIX: np.asarray(matrix, np.float32)}


def _init(config, part):
    """key -> fresh parameters, with logical axis names."""
    if part == "tokenizer":
        return lambda key: restore.init_tokenizer(make_tokenizer(config), key)
    return lambda key: restore.init_generator(make_generator(config), key)


def _params(config, part):
    """Shapes of the parameters."""
    return nn.unbox(jax.eval_shape(_init(config, part), jax.random.key(0)))
