"""Published weight files and the configured models: check, read, write.

Names and shapes follow from the configured model, of any size; where it is a published one, the
manifest in `third_party/` agrees and says what else its file holds.
"""

import logging
import math
import os
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bar_jax.bases.transform import check_invertible
from bar_jax.config import real_valued
from bar_jax.generators import make_generator
from bar_jax.generators.basis import MATRIX, BasisGenerator
from bar_jax.generators.xar import XAR
from bar_jax.pretrained import bar_fsq, kl_vae, manifest, mar, masked_bit, xar
from bar_jax.pretrained.files import read_tensors
from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime.errors import InputError
from bar_jax.tokenizers import make_tokenizer
from bar_jax.training import restore as models

logger = logging.getLogger(__name__)

# The kinds of which there are published weights.
TOKENIZERS = ("bar_fsq", "kl_vae")
MATRIX_TENSOR = "basis"  # A of y = A x in an exported file
HEADS = {"causal": "masked_bit", "xar": "flow", "mar": "diffusion"}  # of each generator


def check_kind(config: ConfigDict, part: str) -> None:
    """Checks that weights were published for models of the configured kind.

    Args:
      part: `tokenizer` or `generator`.

    Raises:
      InputError: naming the field.
    """
    section, kinds = "tokenizer", TOKENIZERS
    if part == "generator":
        section, kinds = "head", (HEADS[config.model.generator.kind],)
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
    if part == "tokenizer":
        lacking = [name for name in needed if name.startswith(bar_fsq.PREDICTOR_PREFIX)]
    elif not real_valued(config):
        lacking = masked_bit.rotary_tensors(params, **_sequence(config))
    else:
        lacking = [MATRIX_TENSOR] if MATRIX_TENSOR in needed else []
        if config.model.generator.kind == "xar":
            lacking += xar.buffers(make_generator(config).host)
    return needed, {name: needed.pop(name) for name in lacking}


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
    for name in found:
        if name.startswith((*bar_fsq.NOT_READ, bar_fsq.PREDICTOR_PREFIX)):
            optional.setdefault(name, None)
    try:
        manifest.check(path, found, needed, optional, what)
    except InputError:
        _check_image_size(config, path, found, needed, optional)
        raise
    return found


def _check_image_size(config, path, found, needed, optional) -> None:
    """Tells that a tokenizer is for images of another size, if that is all that does not fit."""
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
) -> models.Trained:
    """What `read` returned, as a module with parameters on the mesh, ready for use.

    A tokenizer's feature predictor, which a file may lack, is drawn from `config.seed`.
    """
    if part == "tokenizer":
        module = models.make_codec(config)
        if config.model.tokenizer.kind == "kl_vae":
            params = kl_vae.tokenizer_params(tensors, module)
        else:
            params = _tokenizer_params(config, module, tensors)
    else:
        module = models.make_sampler(config)
        params = _generator_params(module, tensors)
    del tensors  # where they are not mapped but read: no more than two copies are held
    layout = models.param_shapes(_init(config, part), mesh)
    return models.Trained(module, mesh_lib.place(params, layout), step=0)


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
    if config.model.tokenizer.kind == "kl_vae" and part == "tokenizer":
        return kl_vae.tokenizer_tensors(params, make_tokenizer(config))
    if part == "tokenizer":
        return bar_fsq.tokenizer_tensors(params)
    if not real_valued(config):
        return masked_bit.generator_tensors(params, **_sequence(config))
    basis = {MATRIX_TENSOR: params[MATRIX]} if MATRIX in params else {}
    if config.model.generator.kind == "mar":
        return mar.generator_tensors(params["host"]) | basis
    return xar.xar_tensors(make_generator(config).host, params["host"]) | basis


def _generator_params(module: nn.Module, tensors: Mapping[str, np.ndarray]) -> dict:
    """Parameters of a generator as numpy arrays; a matrix basis is as it starts."""
    if not isinstance(module, BasisGenerator):
        trunk = module.trunk
        return masked_bit.generator_params(
            tensors, depth=trunk.depth, heads=trunk.heads, head_depth=module.head.depth
        )
    host = module.host
    if isinstance(host, XAR):
        depth, decoder_depth = host.depth, host.decoder_depth or host.depth
        params = xar.xar_params(tensors, depth=depth, decoder_depth=decoder_depth, heads=host.heads)
    else:
        parts = (host.encoder, host.decoder)
        params = mar.generator_params(
            tensors,
            depths=tuple(part.depth for part in parts),
            heads=tuple(part.heads for part in parts),
            head_depth=host.head.depth,
        )
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
        return lambda key: models.init_tokenizer(make_tokenizer(config), key)
    return lambda key: models.init_generator(make_generator(config), key)


def _params(config, part):
    """Shapes of the parameters."""
    return nn.unbox(jax.eval_shape(_init(config, part), jax.random.key(0)))


def _tokenizer_params(config, module, tensors):
    """Parameters of BAR-FSQ as numpy arrays; a feature predictor that lacks is drawn anew."""
    sizes = config.model.tokenizer
    params = bar_fsq.tokenizer_params(
        tensors,
        encoder_depth=sizes.encoder.depth,
        encoder_heads=sizes.encoder.heads,
        decoder_depth=sizes.decoder.depth,
        decoder_heads=sizes.decoder.heads,
    )
    if not module.predictor_width:
        params.pop("feature_predictor", None)
    elif "feature_predictor" not in params:
        logger.info("tokenizer: no feature predictor in the file; a new one, for training alone")
        inner = jnp.zeros((1, 1, sizes.decoder.width))
        fresh = module.init(jax.random.key(config.seed), inner, method=module.predict_features)
        params |= jax.tree.map(np.asarray, nn.unbox(fresh)["params"])
    return params


def _sequence(config):
    """What the rotary tables depend on."""
    trunk = make_generator(config).trunk
    return {"grid": trunk.grid, "prefix": trunk.prefix}
