"""In bfloat16 the products of layers are bfloat16; what layers add to is float32 (autocast)."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from bar_jax.config.file import load_config
from bar_jax.generators import make_generator
from bar_jax.nn.vit import ViT
from bar_jax.training import restore

BATCH = 2


def generator(file):
    """A tiny generator's loss in bfloat16, of examples that are all zero."""
    config = load_config(f"configs/{file}.py:tiny")
    config.dtype = "bfloat16"
    module = make_generator(config)
    params = jax.eval_shape(lambda key: restore.init_generator(module, key), jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((BATCH, *module.token_shape), module.token_dtype)
    labels = jax.ShapeDtypeStruct((BATCH,), jnp.int32)

    def loss(params, tokens, labels):
        draws = module.draw(jax.random.split(jax.random.key(0), BATCH))
        args = tokens, labels, draws, 0.0, True
        return module.apply({"params": params}, *args, method=module.loss)

    return loss, params, tokens, labels


def vit(_):
    module = ViT(8, 2, 2, 16, dtype=jnp.bfloat16)
    tokens = jax.ShapeDtypeStruct((BATCH, 4, 8), jnp.bfloat16)
    params = jax.eval_shape(lambda key, x: module.init(key, x, (2, 2)), jax.random.key(0), tokens)
    return lambda params, x: module.apply(params, x, (2, 2)), params, tokens


def equations(jaxpr, name):
    """All of a kind, also those inside of others."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner, name)


def of_floats(variables):
    return {v.aval.dtype for v in variables if jnp.issubdtype(v.aval.dtype, jnp.floating)}


@pytest.mark.parametrize(
    "make, file, scans",
    [
        (generator, "masked_bit/bar_b", 2),  # trunk and head
        (generator, "basis/xar_b", 2),  # encoder and decoder
        (generator, "basis/mar_b_host", 3),  # encoder, decoder and head
        (vit, "", 1),
    ],
    ids=["masked bits", "xar", "mar", "vit"],
)
def test_layers_add_to_float32_and_multiply_bfloat16(make, file, scans):
    function, *args = make(file)
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    layers = [
        equation
        for equation in equations(jaxpr, "scan")
        if any(equations(equation.params["jaxpr"].jaxpr, "dot_general"))
    ]
    assert len(layers) == scans
    for equation in layers:
        fixed, carried = equation.params["num_consts"], equation.params["num_carry"]
        assert of_floats(equation.invars[fixed : fixed + carried]) == {np.dtype("float32")}
        products = list(equations(equation.params["jaxpr"].jaxpr, "dot_general"))
        kernels = [p for p in products if p.params["dimension_numbers"][1] == ((), ())]
        assert kernels, "no layer"
        for product in kernels:
            assert of_floats(product.invars) == {jnp.dtype(jnp.bfloat16)}
